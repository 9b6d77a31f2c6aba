import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { pageBytes } from '@pageferry/base'
import { BandwidthLimit } from '@pageferry/pages'
import { maxBatchPages, maxPayloadBytes } from '@pageferry/wire'

/** The part that a loop needs to send batches: when to send, and how much was sent. */
export type Pace = Pick<Pacing, 'turn' | 'sent' | 'batchPages'>

/**
 * Longest time that a pushed batch takes at the limit. To a destination that receives nothing for longer, pages look
 * lost (restore-service/lazy/phase.ts): it would request them, and requests are not limited.
 */
const maxBatchMs = 100

/** Limits a loop that sends batches to the bandwidth that the user allows. Without a limit it never waits. */
export class Pacing {
  readonly #limit: BandwidthLimit | null
  /** Largest number of pages in a pushed batch. */
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

  /** Waits for the next batch's turn. Returns whether it had to wait. Returns early when the signal fires. */
  async turn(signal: AbortSignal): Promise<boolean> {
    for (let hasWaited = false; ; hasWaited = true) {
      const waitMs = this.#limit?.waitMs(performance.now()) ?? 0
      if (waitMs === 0 || signal.aborted) return hasWaited
      // Timers are whole milliseconds. After an early one the loop would ask again at once.
      await sleep(Math.ceil(waitMs), undefined, { signal }).catch(() => {})
    }
  }

  sent(bytes: number): void {
    this.#limit?.sent(bytes, performance.now())
  }
}
