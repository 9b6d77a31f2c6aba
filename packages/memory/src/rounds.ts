import { pageBytes } from '@pageferry/base'

/**
 * When to stop pre-copying and freeze.
 *
 * CRIU leaves this to its caller. QEMU estimates, after each pass over the dirty bitmap, how long the rest
 * would take at the bandwidth it has seen, and stops when that is below the allowed downtime; a guest that
 * writes faster than the link never gets there. Here the same estimate is the first rule, and because in
 * hybrid mode the rest can follow lazily, giving up is cheap and comes early:
 *
 *   1. nothing was written during the round                  -> freeze, 'idle'
 *   2. what was written / bandwidth <= maxDowntimeMs         -> freeze, 'downtime-goal'
 *   3. maxRounds rounds are done                             -> freeze, 'round-limit'
 *   4. `patience` rounds running left more than 85% of what
 *      the round before left to do                           -> freeze, 'not-shrinking'
 *   otherwise                                                -> continue
 *
 * Bandwidth is an exponentially weighted mean over the rounds, in which the latest weighs half. It is
 * bandwidth of the whole path (scan, read, send, install, acknowledge), not of the network.
 */
export interface RoundResult {
  /** Pages the round had to send, zero pages included. */
  pagesSent: number
  /** Pages written since the round began: what the next one would have to send. */
  dirtyNow: number
  /** Page bytes that crossed the wire. */
  bytes: number
  /** From the round's scan to the acknowledgement that all of it is installed. */
  durationMs: number
}

export type FreezeReason = 'downtime-goal' | 'not-shrinking' | 'round-limit' | 'idle'

export type RoundDecision = { estimatedDowntimeMs: number } & (
  | { action: 'continue' }
  | { action: 'freeze'; reason: FreezeReason }
)

export interface StopRuleOptions {
  maxRounds?: number
  maxDowntimeMs?: number
  patience?: number
}

/** The first carries everything, each next one what its predecessor took time for; most settle by the fourth. */
export const defaultMaxRounds = 8
/** The blackout target on loopback: what the dirty pages may add to it. */
export const defaultMaxDowntimeMs = 25
/** A round that leaves more than this share of the work of the one before gains too little for its bytes. */
const shrinkFactor = 0.85
/**
 * Within the goal, rounds go on while each leaves at most half of the one before: such a round is shorter than
 * the goal itself, and every page that it carries is neither discarded in the freeze nor faulted on later.
 */
const cheapShrinkFactor = 0.5
/** A round of fewer pages is mostly its own scan and acknowledgement. */
const negligiblePages = 64
const latestWeight = 0.5
/** Smaller rounds measure latency, not bandwidth: they count only until there is something better. */
const minSampleBytes = 1024 * 1024

export class StopRule {
  readonly maxRounds: number
  readonly maxDowntimeMs: number
  readonly #patience: number
  #rounds = 0
  #bytesPerMs = 0
  #hasGoodSample = false
  #stalledRounds = 0

  constructor(options: StopRuleOptions = {}) {
    this.maxRounds = options.maxRounds ?? defaultMaxRounds
    this.maxDowntimeMs = options.maxDowntimeMs ?? defaultMaxDowntimeMs
    this.#patience = options.patience ?? 1
  }

  /** Estimated bandwidth in bytes per millisecond; 0 before the first round that sent anything. */
  get bytesPerMs(): number {
    return this.#bytesPerMs
  }

  get rounds(): number {
    return this.#rounds
  }

  /** One round is over: what now? Call once per round, in order. */
  decide(round: RoundResult): RoundDecision {
    this.#rounds++
    this.#sample(round)
    const estimatedDowntimeMs = this.downtimeMs(round.dirtyNow)
    const freeze = (reason: FreezeReason): RoundDecision => ({
      action: 'freeze',
      reason,
      estimatedDowntimeMs,
    })

    if (round.dirtyNow === 0) return freeze('idle')
    const shrinksFast =
      round.dirtyNow <= cheapShrinkFactor * round.pagesSent && round.dirtyNow > negligiblePages
    if (estimatedDowntimeMs <= this.maxDowntimeMs && !shrinksFast) return freeze('downtime-goal')
    if (this.#rounds >= this.maxRounds) return freeze('round-limit')
    this.#stalledRounds = round.dirtyNow > shrinkFactor * round.pagesSent ? this.#stalledRounds + 1 : 0
    if (this.#stalledRounds >= this.#patience) return freeze('not-shrinking')
    return { action: 'continue', estimatedDowntimeMs }
  }

  /** Time to send so many pages at the estimated bandwidth; infinite while there is no estimate. */
  downtimeMs(pages: number): number {
    if (pages === 0) return 0
    return this.#bytesPerMs === 0 ? Number.POSITIVE_INFINITY : (pages * pageBytes) / this.#bytesPerMs
  }

  #sample({ bytes, durationMs }: RoundResult): void {
    if (bytes <= 0) return
    const isGood = bytes >= minSampleBytes
    if (!isGood && this.#hasGoodSample) return
    // A clock that did not move between two reads says nothing better than "very fast".
    const sample = bytes / Math.max(durationMs, 0.01)
    const restart = this.#bytesPerMs === 0 || (isGood && !this.#hasGoodSample)
    this.#bytesPerMs = restart ? sample : latestWeight * sample + (1 - latestWeight) * this.#bytesPerMs
    this.#hasGoodSample ||= isGood
  }
}
