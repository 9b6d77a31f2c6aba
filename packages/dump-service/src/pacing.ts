import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { BandwidthLimit } from '@pageferry/memory'
import { maxPayloadBytes } from '@pageferry/wire'

/** What a loop that sends batches asks: when, and how much it was. */
export type Pace = Pick<Pacing, 'turn' | 'sent'>

/** Holds a loop that sends batches to the bandwidth that the user allows. Without a limit nothing waits. */
export class Pacing {
  readonly #limit: BandwidthLimit | null

  /** @param maxBandwidthMbit 0: no limit */
  constructor(maxBandwidthMbit: number) {
    this.#limit = maxBandwidthMbit === 0 ? null : new BandwidthLimit(maxBandwidthMbit, maxPayloadBytes)
  }

  /** Whether it had to wait. Returns early when the signal fires. */
  async turn(signal: AbortSignal): Promise<boolean> {
    for (let hasWaited = false; ; hasWaited = true) {
      const waitMs = this.#limit?.waitMs(performance.now()) ?? 0
      if (waitMs === 0 || signal.aborted) return hasWaited
      // Timers are whole milliseconds; one that is early would be asked for again at once.
      await sleep(Math.ceil(waitMs), undefined, { signal }).catch(() => {})
    }
  }

  sent(bytes: number): void {
    this.#limit?.sent(bytes, performance.now())
  }
}
