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
 *            +--- held back, and a sample shows a gain ---+
 *            |                                            v
 *           off                                           on
 *            ^                                            |
 *            +--- no gain any more, or never held back ---+
 *
 * The link's speed is known only of a sender that the link holds back. Off, a sender that is not held back has nothing
 * to gain, and nothing is measured: that is the case on loopback, and costs nothing. One that is held back compresses a
 * piece of a batch now and then and throws the result away. On, a sender that is not held back any more may itself have
 * become the slowest part, of a link that would carry more: it stops compressing, and what follows off is measured
 * anew. Where that was a mistake it waits twice as long the next time.
 */

const onGain = 1.3
const offGain = 1.1
/** A sample of `samplePages` takes some 0.6 ms: a quarter of a percent of the time. */
const sampleIntervalMs = 250
export const samplePages = 64
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
   * @param linkBytesPerMs of the latest batches; 0: not known
   */
  next(nowMs: number, heldBack: boolean, linkBytesPerMs: number): CompressionDecision {
    this.#held += heldWeight * ((heldBack ? 1 : 0) - this.#held)
    this.#link = Math.min(linkBytesPerMs, this.#maxBytesPerMs)
    if (heldBack || nowMs - this.#lastMs > pauseMs) this.#freeBytes = 0
    this.#lastMs = nowMs
    if (this.#isOn) this.#reconsider(heldBack)
    if (this.#isOn) return 'compress'
    const mayAsk = this.#link > 0 && this.#held >= heldEnough && nowMs - this.#sampledMs >= sampleIntervalMs
    return mayAsk ? 'sample' : 'plain'
  }

  #reconsider(heldBack: boolean): void {
    if (this.#freeBytes > this.#patience * this.#windowBytes) {
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
  }

  /** How many times as many pages travel compressed. */
  get #gain(): number {
    return Math.min(this.#bytesPerMs / this.#nrSharing / this.#link, 1 / this.#ratio)
  }
}
