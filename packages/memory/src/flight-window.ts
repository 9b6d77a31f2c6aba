import { MiB, pageBytes } from '@pageferry/base'

/**
 * How much of what is pushed may be on its way: enough to keep the path busy, and little more, because the page that
 * a thread waits for stands behind it where the path is narrowest.
 *
 * Bandwidth and delay are measured from acknowledgements as BBR does (Cardwell et al., "BBR: Congestion-Based
 * Congestion Control", ACM Queue 14(5), 2016; delivery rate: draft-cheng-iccrg-delivery-rate-estimation): the highest
 * rate at which bytes were delivered while one of the latest batches was on its way, and the shortest time that any batch
 * of the connection took. The first one is small and alone, so that no queue of ours is in that time. Their product fills
 * the path; `queueMs` of more lets the sender sleep a little. It knows no clock.
 */

/** What may wait in front of the narrowest place: about what a wake-up on a busy host takes. */
const queueMs = 8
/** A batch occupies the path for so long, where it can be that small. */
const batchMs = 2
/** Smaller batches cost more than they carry. */
const minBatchPages = 16
const maxBatchPages = 256
const minBatches = 2
const maxWindowBytes = 4 * MiB
/** Acknowledgements that count: a path that became slower is noticed after so many. */
const nrSamples = 16

interface InFlight {
  bytes: number
  sentMs: number
  /** Bytes delivered when it was sent, and when that was known. */
  delivered: number
  deliveredMs: number
}

export class FlightWindow {
  readonly #inFlight = new Map<number, InFlight>()
  #inFlightBytes = 0
  #delivered = 0
  #deliveredMs = 0
  /** Bytes per millisecond, of the latest batches. */
  #rates: number[] = []
  #minDelayMs = 0

  /** @param id of the batch, for `acknowledged` */
  sent(id: number, bytes: number, nowMs: number): void {
    // After a pause the time in which nothing was on its way says nothing of the path.
    if (this.#inFlight.size === 0) this.#deliveredMs = nowMs
    const { delivered, deliveredMs } = { delivered: this.#delivered, deliveredMs: this.#deliveredMs }
    this.#inFlight.set(id, { bytes, sentMs: nowMs, delivered, deliveredMs })
    this.#inFlightBytes += bytes
  }

  acknowledged(id: number, nowMs: number): void {
    const batch = this.#inFlight.get(id)
    if (batch === undefined) return
    this.#inFlight.delete(id)
    this.#inFlightBytes -= batch.bytes
    this.#delivered += batch.bytes
    this.#deliveredMs = nowMs
    const elapsedMs = nowMs - batch.deliveredMs
    if (elapsedMs <= 0) return
    const delayMs = nowMs - batch.sentMs
    this.#minDelayMs = this.#rates.length === 0 ? delayMs : Math.min(this.#minDelayMs, delayMs)
    this.#rates.push((this.#delivered - batch.delivered) / elapsedMs)
    if (this.#rates.length > nrSamples) this.#rates.shift()
  }

  /** The connection is gone, and what was on its way with it; the next one may go another way. */
  lost(): void {
    this.#inFlight.clear()
    this.#inFlightBytes = 0
    this.#rates = []
  }

  /** Pages of the next batch. */
  get batchPages(): number {
    if (this.#rates.length === 0) return minBatchPages
    const pages = Math.floor((Math.max(...this.#rates) * batchMs) / pageBytes)
    return Math.min(Math.max(pages, minBatchPages), maxBatchPages)
  }

  /** Bytes that may be on their way. */
  get bytes(): number {
    if (this.#rates.length === 0) return minBatchPages * pageBytes
    const wanted = Math.max(...this.#rates) * (this.#minDelayMs + queueMs)
    return Math.min(Math.max(wanted, minBatches * this.batchPages * pageBytes), maxWindowBytes)
  }

  /** The next batch fits. */
  get hasRoom(): boolean {
    return this.#inFlightBytes + this.batchPages * pageBytes <= this.bytes
  }
}
