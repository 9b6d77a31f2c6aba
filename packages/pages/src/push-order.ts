import { type RunTable, runCapacity } from '@pageferry/base'
import type { PageSet } from './page-set.js'
import type { WriteHistory } from './write-history.js'

/**
 * The order in which the source pushes lazy pages, so that as few as possible are faulted on:
 *
 *   1. pages written in the most pre-dump rounds (a running program continues to write where it wrote),
 *   2. the surroundings of recent faults, the latest fault first,
 *   3. the rest, ascending.
 *
 * The cost of a batch depends on its own size, not on the pending pages. A cursor walks the groups and the rest once
 * each. The bitmap tells which pages were taken or removed meanwhile.
 */
export const maxBatchPages = 256
/**
 * Pages around a fault: its block and the next one, because programs mostly walk upwards. Whole blocks, so that random
 * faults do not cut the rest into small runs: those cost time at every step of their way.
 */
const blockPages = 64
/** More threads than this rarely fault at once; older neighbourhoods are reached by the ascending walk. */
const maxRecentFaults = 64

export interface Batch {
  nrRuns: number
  nrPages: number
}

export class PushOrder {
  readonly #pending: PageSet
  /** Hottest first; each is walked from its cursor. */
  readonly #groups: PageSet[]
  #groupCursor = 0
  #cursor = 0
  /** Stack, the latest fault last. */
  readonly #faults: number[] = []

  /** Takes over the set, which holds the pages that are still to push. */
  constructor(pending: PageSet, history?: WriteHistory) {
    this.#pending = pending
    this.#groups = history?.byHeat(pending) ?? []
  }

  get isEmpty(): boolean {
    return this.#pending.isEmpty
  }

  get count(): number {
    return this.#pending.count
  }

  has(page: number): boolean {
    return this.#pending.has(page)
  }

  /** The destination faulted here. The fault lane serves the page itself, so remove it as well. */
  noteFault(page: number): void {
    if (this.#faults.at(-1) === page) return
    this.#faults.push(page)
    if (this.#faults.length > maxRecentFaults) this.#faults.shift()
  }

  /** Removes pages that were sent on another lane, or are not needed any more. */
  remove(runs: RunTable, nrRuns = runCapacity(runs)): void {
    this.#pending.removeRuns(runs, nrRuns)
  }

  /** Puts back a batch that did not arrive, to push it again with the rest. */
  requeue(runs: RunTable, nrRuns = runCapacity(runs)): void {
    this.#pending.addRuns(runs, nrRuns)
    for (let i = 0; i < nrRuns; i++) this.#cursor = Math.min(this.#cursor, runs[2 * i])
  }

  /**
   * Fills `out` with the next runs and removes them. nrPages is 0 only when nothing is pending. Runs are in pushing
   * order: not ascending, but they never overlap.
   */
  next(out: RunTable, maxPages = maxBatchPages): Batch {
    const batch = { nrRuns: 0, nrPages: 0 }
    const room = () => Math.min(maxPages - batch.nrPages, batch.nrRuns < runCapacity(out) ? maxPages : 0)

    while (this.#groups.length > 0 && room() > 0) {
      const page = this.#groups[0].firstFrom(this.#groupCursor)
      if (page < 0) {
        this.#groups.shift()
        this.#groupCursor = 0
        continue
      }
      const end = page + this.#groups[0].runLength(page, room())
      this.#groupCursor = this.#take(out, batch, page, end, room())
    }
    while (this.#faults.length > 0 && room() > 0) {
      const fault = this.#faults[this.#faults.length - 1]
      const from = Math.floor(fault / blockPages) * blockPages
      const end = from + 2 * blockPages
      // Pages that did not fit are found again next time: taken pages are no longer pending.
      if (this.#take(out, batch, from, end, room()) >= end) this.#faults.pop()
    }
    while (room() > 0) {
      const page = this.#pending.firstFrom(this.#cursor)
      if (page < 0) break
      const end = page + this.#pending.runLength(page, room())
      this.#cursor = this.#take(out, batch, page, end, room())
    }
    return batch
  }

  /** Moves pending pages of from..end-1 into the batch. Returns the page to continue from, `end` when done. */
  #take(out: RunTable, batch: Batch, from: number, end: number, maxPages: number): number {
    let at = from
    let left = maxPages
    while (at < end) {
      const first = this.#pending.firstFrom(at)
      if (first < 0 || first >= end) return end
      if (left <= 0 || batch.nrRuns === runCapacity(out)) return first
      const nr = this.#pending.runLength(first, Math.min(left, end - first))
      this.#pending.removeRange(first, nr)
      out[2 * batch.nrRuns] = first
      out[2 * batch.nrRuns + 1] = nr
      batch.nrRuns++
      batch.nrPages += nr
      left -= nr
      at = first + nr
    }
    return end
  }
}
