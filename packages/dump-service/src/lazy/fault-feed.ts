import type { CompressionCounts } from '@pageferry/wire'

/** Places in the buffer, in 64-bit words. */
const nrFaultsAt = 0
const bytesSentAt = 1
const compressedPagesAt = 2
const compressedBytesAt = 3
const ringAt = 4
/** How far the reader may fall behind. It only needs the places of the latest faults. */
const ringFaults = 64

/**
 * Reports of the fault lane's thread, in memory that it shares with the worker: where the last faults were, and the
 * bytes of the replies. One thread writes. The worker reads when it likes, so a fault costs no message.
 */
export class FaultFeed {
  readonly buffer: SharedArrayBuffer
  readonly #words: BigUint64Array
  /** Number of faults that `takeFaults` has passed on. */
  #taken = 0

  constructor(buffer = new SharedArrayBuffer(8 * (ringAt + ringFaults))) {
    this.buffer = buffer
    this.#words = new BigUint64Array(buffer)
  }

  /**
   * A request was answered.
   * @param page the first page of the request
   * @param bytes length of the reply, header included
   * @param compressed totals of all compressed replies so far
   */
  noteReply(page: number, bytes: number, compressed: CompressionCounts): void {
    const words = this.#words
    const nr = Number(Atomics.load(words, nrFaultsAt))
    Atomics.store(words, ringAt + (nr % ringFaults), BigInt(page))
    Atomics.add(words, bytesSentAt, BigInt(bytes))
    Atomics.store(words, compressedPagesAt, BigInt(compressed.pages))
    Atomics.store(words, compressedBytesAt, BigInt(compressed.bytes))
    // Last: a reader that sees the number also sees the page.
    Atomics.store(words, nrFaultsAt, BigInt(nr + 1))
  }

  /** Calls back with the faults since the last call, oldest first; at most the latest `ringFaults`. */
  takeFaults(callback: (page: number) => void): void {
    const end = Number(Atomics.load(this.#words, nrFaultsAt))
    // The writer may overtake us in the ring meanwhile. Then we read a later fault, which is as good.
    for (let nr = Math.max(this.#taken, end - ringFaults); nr < end; nr++) {
      callback(Number(Atomics.load(this.#words, ringAt + (nr % ringFaults))))
    }
    this.#taken = end
  }

  /** Bytes of all replies, over all connections. */
  get bytesSent(): number {
    return Number(Atomics.load(this.#words, bytesSentAt))
  }

  get compressed(): CompressionCounts {
    return {
      pages: Number(Atomics.load(this.#words, compressedPagesAt)),
      bytes: Number(Atomics.load(this.#words, compressedBytesAt)),
    }
  }
}
