import { pageBytes } from '@pageferry/base'

/**
 * When to stop pre-copying and freeze, and how many pages may travel inside the freeze.
 *
 * CRIU leaves this to its caller. QEMU estimates, after each pass over the dirty bitmap, how long the rest
 * would take at the bandwidth it has seen, and stops when that is below the allowed downtime; a guest that
 * writes faster than the link never gets there. Here the same estimate is the first rule, and because in
 * hybrid mode the rest can follow lazily, giving up is cheap and comes early:
 *
 *   1. nothing was written during the round                  -> freeze, 'idle'
 *   2. the predicted downtime is at most maxDowntimeMs       -> freeze, 'downtime-goal'
 *   3. maxRounds rounds are done                             -> freeze, 'round-limit'
 *   4. `patience` rounds running left more than 85% of what
 *      the round before left to do                           -> freeze, 'not-shrinking' (hybrid only)
 *   otherwise                                                -> continue
 *
 *     predicted downtime = fixedDowntimeMs + predicted dirty pages / bandwidth
 *     predicted dirty pages = what is dirty now + dirty rate x stopDelayMs
 *
 * Both rates are measured: pages written during the round over its time, and bytes over the same time. The second is an
 * exponentially weighted mean over the rounds, in which the latest weighs half. It is the bandwidth of the whole
 * path (scan, read, send, install, acknowledge), not of the network, and under --max-bandwidth that of the limit: a
 * freeze, which is not limited, then takes less than predicted.
 *
 * In hybrid mode the hottest pages travel inside the freeze, as many as fit (`freezeBudgetPages`), and the others follow
 * lazily, so a workload that never converges ends in post-copy. In mode precopy nothing can follow: it keeps trying
 * until the limit.
 */
export interface RoundResult {
  /** Pages the round had to send, zero pages included. */
  pagesSent: number
  /** Pages written since the round began: what the next one would have to send. */
  dirtyNow: number
  /** Of the pages that crossed the wire, before anything was compressed: what is left is counted in pages too. */
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
  /** false: mode precopy, whatever is dirty travels inside the freeze. Default true. */
  canFollowLazily?: boolean
  maxRounds?: number
  maxDowntimeMs?: number
  patience?: number
}

/** The first carries everything, each next one what its predecessor took time for; most settle by the fourth. */
export const defaultMaxRounds = 8
/** The whole pause on loopback; see service/api/settings.ts. */
export const defaultMaxDowntimeMs = 25
/**
 * What a pause takes beside its pages: stop, capture, restore and resume of a process of some tens of areas and a few
 * threads, on machines where nothing else happens. It does not grow with memory, and no round makes it shorter.
 */
export const fixedDowntimeMs = 20
/** From counting dirty pages to the last thread's stop: one scan, and a few switches of context. */
const stopDelayMs = 2
/**
 * 16 MiB. What is hot was written in several rounds; a working set beyond this is not likely to be touched as a whole in
 * the first milliseconds, and whoever allows a downtime of seconds wants the process back before they have passed.
 */
export const maxFreezeBudgetPages = 4096
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
/** A clock that did not move between two reads says nothing better than "very fast". */
const shortestMs = 0.01
/**
 * Smaller rounds measure latency, not bandwidth: their map, scan and acknowledgement take milliseconds whatever they
 * carry, and 16 MiB at 1 GB/s take 16. They count only until there is something better.
 */
const minSampleBytes = 16 * 1024 * 1024

export class StopRule {
  readonly maxRounds: number
  readonly maxDowntimeMs: number
  readonly #patience: number
  #dirtyPagesPerMs = 0
  #rounds = 0
  #bytesPerMs = 0
  #hasGoodSample = false
  #stalledRounds = 0

  constructor(options: StopRuleOptions = {}) {
    this.maxRounds = options.maxRounds ?? defaultMaxRounds
    this.maxDowntimeMs = options.maxDowntimeMs ?? defaultMaxDowntimeMs
    this.#patience = (options.canFollowLazily ?? true) ? (options.patience ?? 1) : Number.POSITIVE_INFINITY
  }

  /** Estimated bandwidth in bytes per millisecond; 0 before the first round that sent anything. */
  get bytesPerMs(): number {
    return this.#bytesPerMs
  }

  /** Pages written per millisecond of the last round, each counted once. */
  get dirtyPagesPerMs(): number {
    return this.#dirtyPagesPerMs
  }

  get rounds(): number {
    return this.#rounds
  }

  /** One round is over: what now? Call once per round, in order. */
  decide(round: RoundResult): RoundDecision {
    this.#rounds++
    this.#sample(round)
    this.#dirtyPagesPerMs = round.dirtyNow / Math.max(round.durationMs, shortestMs)
    const estimatedDowntimeMs = this.downtimeMs(round.dirtyNow + this.#dirtyPagesPerMs * stopDelayMs)
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

  /** The pause if so many pages travel inside it; infinite while there is no estimate of the bandwidth. */
  downtimeMs(pages: number): number {
    if (pages === 0) return fixedDowntimeMs
    if (this.#bytesPerMs === 0) return Number.POSITIVE_INFINITY
    return fixedDowntimeMs + (pages * pageBytes) / this.#bytesPerMs
  }

  /** Pages that fit into what the fixed part leaves of the allowed downtime. */
  get freezeBudgetPages(): number {
    const leftMs = Math.max(0, this.maxDowntimeMs - fixedDowntimeMs)
    return Math.min(maxFreezeBudgetPages, Math.floor((leftMs * this.#bytesPerMs) / pageBytes))
  }

  #sample({ bytes, durationMs }: RoundResult): void {
    if (bytes <= 0) return
    const isGood = bytes >= minSampleBytes
    if (!isGood && this.#hasGoodSample) return
    const sample = bytes / Math.max(durationMs, shortestMs)
    const restart = this.#bytesPerMs === 0 || (isGood && !this.#hasGoodSample)
    this.#bytesPerMs = restart ? sample : latestWeight * sample + (1 - latestWeight) * this.#bytesPerMs
    this.#hasGoodSample ||= isGood
  }
}
