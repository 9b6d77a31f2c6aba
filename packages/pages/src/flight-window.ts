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
const defaultMaxBytes = 4 * MiB
/** Batches that have to be measured before the rate is one of the path and not of how it began. */
const enoughSamples = 4
/** Of the batches before, in what a page takes on the wire. */
const pageWeight = 0.25
/**
 * Pages that are compressed count as a quarter of a page at least: those that come next may be others, and the batch would
 * occupy the path for so much longer.
 */
const minBytesPerPage = pageBytes / 4
/** Acknowledgements that count: a path that became slower is noticed after so many. */
export const nrSamples = 16

interface InFlight {
  bytes: number
  nrPages: number
  sentMs: number
  /** What had been delivered when it was sent, and when that was known. */
  delivered: number
  deliveredPages: number
  deliveredMs: number
}

/** What a path delivers; compressed pages are fewer bytes than they hold. */
export interface DeliveryRate {
  bytesPerMs: number
  pagesPerMs: number
}

export class FlightWindow {
  readonly #maxBytes: number
  readonly #inFlight = new Map<number, InFlight>()
  #inFlightBytes = 0
  #delivered = 0
  #deliveredPages = 0
  #deliveredMs = 0
  /** Bytes per millisecond, of the latest batches. */
  #rates: number[] = []
  /** Pages per millisecond, of the same. */
  #pageRates: number[] = []
  #minDelayMs = 0
  #bytesPerPage = pageBytes

  /** @param maxBytes that may be on their way, however long the path */
  constructor(maxBytes: number = defaultMaxBytes) {
    this.#maxBytes = maxBytes
  }

  /**
   * @param id of the batch, for `acknowledged`
   * @param bytes on the wire, without the header
   * @param nrPages that these bytes hold
   */
  sent(id: number, bytes: number, nowMs: number, nrPages: number = bytes / pageBytes): void {
    if (nrPages > 0) this.#bytesPerPage += pageWeight * (bytes / nrPages - this.#bytesPerPage)
    // After a pause the time in which nothing was on its way says nothing of the path.
    if (this.#inFlight.size === 0) this.#deliveredMs = nowMs
    this.#inFlight.set(id, {
      ...{ bytes, nrPages, sentMs: nowMs, delivered: this.#delivered },
      ...{ deliveredPages: this.#deliveredPages, deliveredMs: this.#deliveredMs },
    })
    this.#inFlightBytes += bytes
  }

  acknowledged(id: number, nowMs: number): void {
    const batch = this.#inFlight.get(id)
    if (batch === undefined) return
    this.#inFlight.delete(id)
    this.#inFlightBytes -= batch.bytes
    this.#delivered += batch.bytes
    this.#deliveredPages += batch.nrPages
    this.#deliveredMs = nowMs
    const elapsedMs = nowMs - batch.deliveredMs
    if (elapsedMs <= 0) return
    const delayMs = nowMs - batch.sentMs
    this.#minDelayMs = this.#rates.length === 0 ? delayMs : Math.min(this.#minDelayMs, delayMs)
    this.#rates.push((this.#delivered - batch.delivered) / elapsedMs)
    this.#pageRates.push((this.#deliveredPages - batch.deliveredPages) / elapsedMs)
    if (this.#rates.length <= nrSamples) return
    this.#rates.shift()
    this.#pageRates.shift()
  }

  /** The connection is gone, and what was on its way with it; the next one may go another way. */
  lost(): void {
    this.#inFlight.clear()
    this.#inFlightBytes = 0
    this.#rates = []
    this.#pageRates = []
    this.#bytesPerPage = pageBytes
  }

  /** The best of the latest batches; null: not known. */
  get rate(): DeliveryRate | null {
    if (this.#rates.length < enoughSamples) return null
    return { bytesPerMs: Math.max(...this.#rates), pagesPerMs: Math.max(...this.#pageRates) }
  }

  get #batchBytesPerPage(): number {
    return Math.max(this.#bytesPerPage, minBytesPerPage)
  }

  /** Pages of the next batch. */
  get batchPages(): number {
    if (this.#rates.length === 0) return minBatchPages
    const pages = Math.floor((Math.max(...this.#rates) * batchMs) / this.#batchBytesPerPage)
    return Math.min(Math.max(pages, minBatchPages), maxBatchPages)
  }

  /** Bytes that may be on their way. */
  get bytes(): number {
    if (this.#rates.length === 0) return minBatchPages * pageBytes
    const wanted = Math.max(...this.#rates) * (this.#minDelayMs + queueMs)
    const least = minBatches * this.batchPages * this.#batchBytesPerPage
    return Math.min(Math.max(wanted, least), this.#maxBytes)
  }

  /** The next batch fits. */
  get hasRoom(): boolean {
    return this.#inFlightBytes + this.batchPages * this.#batchBytesPerPage <= this.bytes
  }
}
