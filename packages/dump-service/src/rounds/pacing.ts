import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { pageBytes } from '@pageferry/base'
import { BandwidthLimit } from '@pageferry/pages'
import { maxBatchPages, maxPayloadBytes } from '@pageferry/wire'

/** What a loop that sends batches asks: when, and how much it was. */
export type Pace = Pick<Pacing, 'turn' | 'sent' | 'batchPages'>

/**
 * A pushed batch takes at most so much of the limit's time: to a destination that hears nothing for longer, pages look lost
 * (restore-service/lazy/phase.ts), and it would ask for them where no limit holds.
 */
const maxBatchMs = 100

/** Holds a loop that sends batches to the bandwidth that the user allows. Without a limit nothing waits. */
export class Pacing {
  readonly #limit: BandwidthLimit | null
  /** Pages of a batch that is pushed, at most. */
  readonly batchPages: number

  /** @param maxBandwidthMbit 0: no limit */
  constructor(maxBandwidthMbit: number) {
    this.#limit = maxBandwidthMbit === 0 ? null : new BandwidthLimit(maxBandwidthMbit, maxPayloadBytes)
    const pagesPerMs = (maxBandwidthMbit * 1e6) / 8 / 1000 / pageBytes
    this.batchPages =
      this.#limit === null
        ? maxBatchPages
        : Math.min(maxBatchPages, Math.max(1, Math.floor(maxBatchMs * pagesPerMs)))
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
