import { pageBytes } from '@pageferry/base'
import { type DeliveryRate, nrSamples } from './flight-window.js'

/**
 * Whether compressing pages makes a connection carry more of them. Nobody guesses: two speeds and a ratio are measured.
 *
 *   link    bytes that the connection delivers in a millisecond, from acknowledgements (FlightWindow), or what the
 *           user allows it, if that is less
 *   speed   bytes of pages that this thread compresses in a millisecond, divided by the lanes that share it
 *   ratio   bytes that are left of a byte
 *
 * Compressed, pages travel at min(speed, link / ratio), as they are at `link`. The first divided by the second is the
 * gain: from `onGain` on batches are compressed, below `offGain` not any more.
 *
 *            +--- held back, and a sample promises a gain ---+
 *            |                                               v
 *           off                                              on
 *            ^                                               |
 *            +--- no gain any more, never held back, or -----+
 *                 no more pages arrive than before
 *
 * The link's speed is known only of a sender that the link holds back. Off, a sender that is not held back has nothing
 * to gain, and nothing is measured. One that is held back compresses a piece of a batch now and then and throws the
 * result away. What holds it back may also be a destination that installs no faster, or a processor that both share, and
 * no compression helps against that: so the pages that arrive are counted, and where they have not become more the
 * attempt is over, and the next one later.
 *
 * On, a sender that is not held back any more may itself have become the slowest part, of a link that would carry more:
 * it stops compressing, and what follows off is measured anew. Where that was a mistake it waits twice as long the next
 * time.
 */

const onGain = 1.3
const offGain = 1.1
/** A sample of `samplePages` takes some 0.6 ms: a quarter of a percent of the time. */
const sampleIntervalMs = 250
export const samplePages = 64
/** Pause after an attempt in which no more pages arrived, at first; doubled after each further one. */
const firstRetryMs = 1000
const maxRetryMs = 30_000
/** Batches that an attempt takes: the first ones leave behind what was sent as it was, and then all samples are its own. */
const attemptBatches = 8 + nrSamples
/** Of the batches before, in what is remembered of being held back: it counts as such after three in a row. */
const heldWeight = 0.25
const heldEnough = 0.5
/** Of the batches before, in speed and ratio. */
const measuredWeight = 0.125
/**
 * Windows of pages in a row without being held back, at first. A link that carries them half as fast as they are
 * compressed has filled the window by then.
 */
const firstPatience = 2
const maxPatience = 128
/** After such a pause there was nothing to send: what the window holds then says nothing. */
const pauseMs = 50

export interface CompressionRuleOptions {
  /** Lanes whose pages the same thread compresses. Default 1. */
  nrSharing?: number
  /** What the user allows this connection. Default: no limit. */
  maxBytesPerMs?: number
  /** Of pages, compressed or not. */
  windowBytes: number
}

/** What to do with the next batch; `sample`: send it as it is, and measure with a piece of it. */
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
  /** No attempt before. */
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
   * Once for each batch with content, before it is sent.
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
    // Of a sender that has little to send the rate says nothing. Nor does the user's limit show in it: that is not the link's.
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
   * A batch was compressed, or a sample of one.
   * @param toBytes not less than `fromBytes`: it travels as it is
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

  /** How many times as many pages travel compressed. */
  get #gain(): number {
    return Math.min(this.#bytesPerMs / this.#nrSharing / this.#link, 1 / this.#ratio)
  }
}
