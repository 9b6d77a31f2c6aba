/**
 * A token bucket that limits the rate, for batches that may be larger than the bucket. The sender asks how long to
 * wait, sends, and reports the bytes. The bucket goes into debt, and the next batch waits until it is paid. In any time
 * t at most rate x t, the bucket and one batch are sent.
 */
export class BandwidthLimit {
  readonly #bytesPerMs: number
  readonly #bucketMs: number
  /** When everything sent so far is paid for. If that is in the past, the bucket has been filling since then. */
  #paidAtMs = Number.NEGATIVE_INFINITY

  /** @param bucketBytes may be sent at once after a pause, or after a late timer */
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
