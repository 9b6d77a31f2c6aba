import { pageBytes } from '@pageferry/base'

/**
 * When to stop pre-copying and freeze, and how many pages may travel inside the freeze.
 *
 * CRIU leaves this to its caller. After each pass over the dirty bitmap QEMU estimates how long the rest would take at
 * the measured bandwidth. It stops when that is below the allowed downtime. A guest that writes faster than the link
 * never gets there. Here the same estimate is the first rule. In hybrid mode the rest can follow lazily, so giving up
 * is cheap and comes early:
 *
 *   1. nothing was written during the round                  -> freeze, 'idle'
 *   2. the predicted downtime is at most maxDowntimeMs       -> freeze, 'downtime-goal'
 *   3. maxRounds rounds are done                             -> freeze, 'round-limit'
 *   4. `patience` rounds in a row left more than 85% of the
 *      pages that the round before left                      -> freeze, 'not-shrinking' (hybrid only)
 *   otherwise                                                -> continue
 *
 *     predicted downtime = fixedDowntimeMs + predicted dirty pages / bandwidth
 *     predicted dirty pages = pages dirty now + dirty rate x stopDelayMs
 *
 * Both rates are measured: pages written during the round over its time, and bytes over the same time. The second is an
 * exponentially weighted mean over the rounds, in which the latest weighs half. It is the bandwidth of the whole path
 * (scan, read, send, install, acknowledge), not of the network. Under --max-bandwidth it is that of the limit: the
 * freeze, which is not limited, then takes less than predicted.
 *
 * In hybrid mode the hottest pages travel inside the freeze, as many as fit (`freezeBudgetPages`), and the others
 * follow lazily. So a workload that never converges ends in post-copy. In mode precopy nothing can follow: it keeps
 * trying until the limit.
 */
export interface RoundResult {
  /** Pages that the round had to send, zero pages included. */
  pagesSent: number
  /** Pages written since the round began, which the next round would have to send. */
  dirtyNow: number
  /** Bytes of the sent pages before compression, since the remaining work is counted in pages too. */
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
  /** false: mode precopy, where all dirty pages travel inside the freeze. Default true. */
  canFollowLazily?: boolean
  maxRounds: number
  /** The whole downtime, on loopback. */
  maxDowntimeMs: number
  patience?: number
}

/**
 * Downtime without the pages: stop, capture, restore and resume of a process with some tens of areas and a few threads,
 * on otherwise idle machines. It does not grow with memory, and no round makes it shorter.
 */
export const fixedDowntimeMs = 20
/** From counting dirty pages to the last thread's stop: one scan, and a few context switches. */
const stopDelayMs = 2
/**
 * 16 MiB. Hot pages were written in several rounds. A larger working set is hardly touched as a whole in the first
 * milliseconds. And a user who allows a downtime of seconds wants the process back before they have passed.
 */
export const maxFreezeBudgetPages = 4096
/** A round that leaves more than this share of the previous round's rest gains too little for its bytes. */
const shrinkFactor = 0.85
/**
 * Within the goal, rounds continue while each leaves at most half of the one before. Such a round is shorter than the
 * goal itself, and every page that it carries is neither discarded in the freeze nor faulted on later.
 */
const cheapShrinkFactor = 0.5
/** A round of fewer pages consists mostly of its own scan and acknowledgement. */
const negligiblePages = 64
const latestWeight = 0.5
/** If the clock did not move between two reads, this is as good as any value for "very fast". */
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

  constructor(options: StopRuleOptions) {
    this.maxRounds = options.maxRounds
    this.maxDowntimeMs = options.maxDowntimeMs
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

  /** One round is over: decides how to continue. Call it once per round, in order. */
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

  /** The downtime if this many pages travel inside it; infinite while the bandwidth is unknown. */
  downtimeMs(pages: number): number {
    if (pages === 0) return fixedDowntimeMs
    if (this.#bytesPerMs === 0) return Number.POSITIVE_INFINITY
    return fixedDowntimeMs + (pages * pageBytes) / this.#bytesPerMs
  }

  /** Pages that fit into the part of the allowed downtime that is not fixed. */
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
