import { MiB, pageBytes } from '@pageferry/base'

/**
 * Limits the pushed bytes in flight: enough to keep the path busy, and little more. A page that a thread waits for
 * queues behind them where the path is narrowest.
 *
 * Bandwidth and delay are measured from acknowledgements as BBR does (Cardwell et al., "BBR: Congestion-Based
 * Congestion Control", ACM Queue 14(5), 2016; delivery rate: draft-cheng-iccrg-delivery-rate-estimation). Bandwidth is
 * the highest rate at which bytes were delivered while one of the latest batches was in flight. Delay is the shortest
 * time that any batch of the connection took. The first batch is small and alone, so its time contains no queue of
 * ours. The product of the two fills the path; `queueMs` of more lets the sender sleep a little. The class knows no
 * clock.
 */

/** Time in the queue in front of the narrowest place: about as long as a wake-up on a busy host. */
const queueMs = 8
/** Time for which a batch occupies the path, if it can be that small. */
const batchMs = 2
/** Smaller batches cost more than they gain. */
const minBatchPages = 16
const maxBatchPages = 256
const minBatches = 2
const defaultMaxBytes = 4 * MiB
/** Batches to measure before the rate is that of the path and not of its start. */
const enoughSamples = 4
/** Weight of the latest batch in the bytes per page. */
const pageWeight = 0.25
/**
 * A compressed page counts as a quarter of a page at least. The next pages may compress worse, and their batch would
 * occupy the path for longer.
 */
const minBytesPerPage = pageBytes / 4
/** Acknowledgements that count. After this many, a slower path is noticed. */
export const nrSamples = 16

interface InFlight {
  bytes: number
  nrPages: number
  sentMs: number
  /** Totals delivered when the batch was sent, and the time of that reading. */
  delivered: number
  deliveredPages: number
  deliveredMs: number
}

/** Delivery rate of a path. Compressed pages are fewer bytes than they hold. */
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
  /** Pages per millisecond, of the same batches. */
  #pageRates: number[] = []
  #minDelayMs = 0
  #bytesPerPage = pageBytes

  /** @param maxBytes in flight at most, however long the path */
  constructor(maxBytes: number = defaultMaxBytes) {
    this.#maxBytes = maxBytes
  }

  /**
   * @param id of the batch, for `acknowledged`
   * @param bytes on the wire, without the header
   * @param nrPages pages in these bytes
   */
  sent(id: number, bytes: number, nowMs: number, nrPages: number = bytes / pageBytes): void {
    if (nrPages > 0) this.#bytesPerPage += pageWeight * (bytes / nrPages - this.#bytesPerPage)
    // After a pause, the idle time says nothing about the path.
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

  /** The connection is lost, with everything in flight. The next one may take another path. */
  lost(): void {
    this.#inFlight.clear()
    this.#inFlightBytes = 0
    this.#rates = []
    this.#pageRates = []
    this.#bytesPerPage = pageBytes
  }

  /** The best rate of the latest batches; null: not known. */
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

  /** Largest number of bytes in flight. */
  get bytes(): number {
    if (this.#rates.length === 0) return minBatchPages * pageBytes
    const wanted = Math.max(...this.#rates) * (this.#minDelayMs + queueMs)
    const least = minBatches * this.batchPages * this.#batchBytesPerPage
    return Math.min(Math.max(wanted, least), this.#maxBytes)
  }

  /** Whether the next batch fits. */
  get hasRoom(): boolean {
    return this.#inFlightBytes + this.batchPages * this.#batchBytesPerPage <= this.bytes
  }
}
