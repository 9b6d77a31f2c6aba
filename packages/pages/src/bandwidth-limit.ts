/**
 * A token bucket: what is sent as fast as it may be, in batches that may be larger than the bucket. Whoever sends
 * asks how long to wait, sends, and says how much it was; the bucket goes into debt and the next one waits for that.
 * In any time t no more is sent than rate x t, the bucket and one batch.
 */
export class BandwidthLimit {
  readonly #bytesPerMs: number
  readonly #bucketMs: number
  /** When all that was sent will have been paid for; in the past: the bucket fills since then. */
  #paidAtMs = Number.NEGATIVE_INFINITY

  /** @param bucketBytes what may be made up for after a pause, or a timer that was late */
  constructor(megabitsPerS: number, bucketBytes: number) {
    this.#bytesPerMs = (megabitsPerS * 1e6) / 8 / 1000
    this.#bucketMs = bucketBytes / this.#bytesPerMs
  }

  /** Milliseconds until the next batch may be sent; 0: now. */
  waitMs(nowMs: number): number {
    return Math.max(0, this.#paidAtMs - nowMs)
  }

  sent(bytes: number, nowMs: number): void {
    this.#paidAtMs = Math.max(this.#paidAtMs, nowMs - this.#bucketMs) + bytes / this.#bytesPerMs
  }
}
