import { pageBytes } from '@pageferry/base'
import { type DeliveryRate, nrSamples } from './flight-window.js'

/**
 * Decides whether compressing pages makes a connection carry more of them. It measures two speeds and a ratio.
 *
 *   link    bytes that the connection delivers in a millisecond, from acknowledgements (FlightWindow), or the user's
 *           limit, if that is less
 *   speed   bytes of pages that this thread compresses in a millisecond, divided by the lanes that share it
 *   ratio   compressed bytes per byte
 *
 * Compressed pages travel at min(speed, link / ratio), others at `link`. The first divided by the second is the gain.
 * Compression starts at a gain of `onGain` and stops below `offGain`.
 *
 *            +--- held back, and a sample promises a gain ---+
 *            |                                               v
 *           off                                              on
 *            ^                                               |
 *            +--- no gain any more, never held back, or -----+
 *                 no more pages arrive than before
 *
 * Off: the link's speed is known only if the link holds the sender back. A sender that is not held back has nothing to
 * gain, and nothing is measured. One that is held back compresses a piece of a batch now and then and throws the result
 * away.
 *
 * The link may not be the reason. A destination that installs no faster, or a processor that both share, also holds the
 * sender back, and compression cannot help. So arriving pages are counted. If they do not increase, the attempt ends,
 * and the next one comes later.
 *
 * On: a sender that is not held back any more may itself have become the slowest part of a link that would carry more.
 * It stops compressing, and everything is measured anew. If that was a mistake, it waits twice as long the next time.
 */

const onGain = 1.3
const offGain = 1.1
/** A sample of `samplePages` takes some 0.6 ms: a quarter of a percent of the time. */
const sampleIntervalMs = 250
export const samplePages = 64
/**
 * Pause after an attempt in which no more pages arrived. This is the first one; it doubles after each further attempt.
 */
const firstRetryMs = 1000
const maxRetryMs = 30_000
/** Batches of one attempt: the first ones outlast batches that were sent uncompressed, then all samples are its own. */
const attemptBatches = 8 + nrSamples
/** Weight of the latest batch in the average of being held back. Three batches in a row count as held back. */
const heldWeight = 0.25
const heldEnough = 0.5
/** Weight of the latest batch in speed and ratio. */
const measuredWeight = 0.125
/**
 * Windows of pages in a row that may pass without the sender being held back, at first. A link that carries pages half
 * as fast as they are compressed has filled the window by then.
 */
const firstPatience = 2
const maxPatience = 128
/** A longer gap between batches means that there was nothing to send. The content of the window then means nothing. */
const pauseMs = 50

export interface CompressionRuleOptions {
  /** Lanes whose pages the same thread compresses. Default 1. */
  nrSharing?: number
  /** The user's limit for this connection. Default: no limit. */
  maxBytesPerMs?: number
  /** Window in bytes of pages, compressed or not. */
  windowBytes: number
}

/** How to send the next batch; `sample`: send it uncompressed, and measure with a piece of it. */
export type CompressionDecision = 'plain' | 'sample' | 'compress'

export class CompressionRule {
  readonly #nrSharing: number
  readonly #maxBytesPerMs: number
  readonly #windowBytes: number
  #isOn = false
  #held = 0
  #link = 0
  /** Pages that arrived in a millisecond before compression was turned on, and batches since. */
  #plainPagesPerMs = 0
  #batches = 0
  /** More pages arrive: the attempt is over, and has succeeded. */
  #isProven = false
  #retryMs = firstRetryMs
  /** No attempt is made before this time. */
  #notBeforeMs = Number.NEGATIVE_INFINITY
  /** 0: never measured. */
  #bytesPerMs = 0
  #ratio = 1
  #sampledMs = Number.NEGATIVE_INFINITY
  #lastMs = Number.NEGATIVE_INFINITY
  #freeBytes = 0
  #patience = firstPatience

  constructor(options: CompressionRuleOptions) {
    const { nrSharing = 1, maxBytesPerMs = Number.POSITIVE_INFINITY, windowBytes } = options
    this.#windowBytes = windowBytes
    this.#nrSharing = nrSharing
    this.#maxBytesPerMs = maxBytesPerMs
  }

  get isOn(): boolean {
    return this.#isOn
  }

  /**
   * Call it once for each batch with content, before it is sent.
   * @param heldBack the sender had to wait for the link, or for the user's limit, before this batch
   * @param rate of the latest batches; null: not known
   */
  next(nowMs: number, heldBack: boolean, rate: DeliveryRate | null): CompressionDecision {
    this.#held += heldWeight * ((heldBack ? 1 : 0) - this.#held)
    this.#link = Math.min(rate?.bytesPerMs ?? 0, this.#maxBytesPerMs)
    if (heldBack || nowMs - this.#lastMs > pauseMs) this.#freeBytes = 0
    this.#lastMs = nowMs
    const pagesPerMs = rate?.pagesPerMs ?? 0
    if (this.#isOn) this.#reconsider(nowMs, heldBack, pagesPerMs)
    if (this.#isOn) return 'compress'
    this.#plainPagesPerMs = Math.min(pagesPerMs, this.#maxBytesPerMs / pageBytes)
    const mayAsk = nowMs >= this.#notBeforeMs && nowMs - this.#sampledMs >= sampleIntervalMs
    return mayAsk && this.#link > 0 && this.#held >= heldEnough ? 'sample' : 'plain'
  }

  #reconsider(nowMs: number, heldBack: boolean, pagesPerMs: number): void {
    this.#batches++
    // The rate means nothing for a sender with little to send, nor under the user's limit, which is not the link's.
    const isOver = this.#batches >= attemptBatches && this.#held >= heldEnough
    const isProven = this.#isProven || this.#link >= this.#maxBytesPerMs
    if (isOver) this.#isProven = true
    if (isOver && !isProven && pagesPerMs < offGain * this.#plainPagesPerMs) {
      this.#isOn = false
      this.#notBeforeMs = nowMs + this.#retryMs
      this.#retryMs = Math.min(2 * this.#retryMs, maxRetryMs)
    } else if (this.#freeBytes > this.#patience * this.#windowBytes) {
      this.#isOn = false
      this.#held = 0
      this.#patience = Math.min(2 * this.#patience, maxPatience)
    } else if (this.#ratio > 1 / offGain || (heldBack && this.#gain < offGain)) {
      this.#isOn = false
      this.#patience = firstPatience
    }
  }

  /**
   * A batch, or a sample of one, was compressed.
   * @param toBytes not less than `fromBytes` when the batch travels uncompressed
   */
  measured(fromBytes: number, toBytes: number, elapsedMs: number, nowMs: number): void {
    const bytesPerMs = fromBytes / Math.max(elapsedMs, 0.001)
    const ratio = Math.min(1, toBytes / fromBytes)
    if (this.#isOn) {
      this.#bytesPerMs += measuredWeight * (bytesPerMs - this.#bytesPerMs)
      this.#ratio += measuredWeight * (ratio - this.#ratio)
      this.#freeBytes += fromBytes
      return
    }
    this.#sampledMs = nowMs
    this.#bytesPerMs = bytesPerMs
    this.#ratio = ratio
    if (this.#gain < onGain) return
    this.#isOn = true
    this.#freeBytes = 0
    this.#batches = 0
    this.#isProven = false
  }

  /** Pages per time with compression, as a multiple of those without. */
  get #gain(): number {
    return Math.min(this.#bytesPerMs / this.#nrSharing / this.#link, 1 / this.#ratio)
  }
}
