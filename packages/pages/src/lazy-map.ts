import { type RunTable, runCapacity } from '@pageferry/base'
import { MovedPages, type Piece } from './moved-pages.js'
import { PageSet } from './page-set.js'

/**
 * The destination's view of lazy pages while the workload runs: which pages of the present address space are still to
 * come, and the source's page number of each.
 *
 * The workload discards, unmaps and moves memory while its pages are under way. userfaultfd reports each change as an
 * event. Applying the events in order keeps this map true. Two rules are enough:
 *
 * - A page stops being pending by being installed, discarded or unmapped, and **is never lazy again**: memory that
 * appears at its address later is new and reads as zeros.
 * - A move takes the pending pages along. The previous memory at the target is gone, and the old place is empty.
 *
 * So the bitmap of pending pages decides, and the translation only finds the content for a pending page. There is one
 * LazyMap per address space. A fork clones it, and from then on the two are independent; one pushed source page may
 * have to be installed in both.
 *
 * Applying events and installing must be ordered: a page that was looked up before a discard must not be installed
 * after it. The caller holds that lock.
 */
export type LazyEvent =
  | { type: 'installed'; first: number; nr: number }
  /** madvise(MADV_DONTNEED and its kin): the mapping stays. */
  | { type: 'remove'; first: number; nr: number }
  | { type: 'unmap'; first: number; nr: number }
  | { type: 'remap'; from: number; to: number; nr: number }

/** Marks a run of registered pages in a table. */
const noSource = -1

export class LazyMap {
  readonly #pending: PageSet
  readonly #registered: PageSet
  readonly #moved: MovedPages

  /**
   * Takes over the sets.
   * @param lazy the PE_LAZY pages of the final pagemap
   * @param registered pages registered with the userfaultfd, at least those of `lazy`
   */
  constructor(lazy: PageSet, registered = lazy.clone(), moved = new MovedPages()) {
    this.#pending = lazy
    this.#registered = registered
    this.#moved = moved
  }

  get pendingCount(): number {
    return this.#pending.count
  }

  get isDrained(): boolean {
    return this.#pending.isEmpty
  }

  isPending(page: number): boolean {
    return this.#pending.has(page)
  }

  /**
   * The first registered page of first .. end-1, pending or not, as far as events tell: memory that grows in place
   * raises none. -1: none.
   */
  firstRegistered(first: number, end: number): number {
    const page = this.#registered.firstFrom(first)
    return page < end ? page : -1
  }

  /**
   * The content for a page that faulted: the source's page number, or 'zero' for everything that is not pending (a
   * hole, stack growth, discarded, unmapped and mapped anew). If an install after 'zero' answers EEXIST, the page came
   * between the fault and its reading.
   */
  lookup(page: number): number | 'zero' {
    return this.#pending.has(page) ? this.#moved.toSource(page) : 'zero'
  }

  /** The page's address at the source, whether pending or not. */
  toSource(page: number): number {
    return this.#moved.toSource(page)
  }

  /** UFFDIO_COPY installed the pages (or found them). Current addresses. */
  installed(runs: RunTable, nrRuns = runCapacity(runs)): void {
    this.#pending.removeRuns(runs, nrRuns)
  }

  remove(first: number, nr: number): void {
    this.#pending.removeRange(first, nr)
    this.#moved.cut(first, nr)
  }

  unmap(first: number, nr: number): void {
    this.remove(first, nr)
    this.#registered.removeRange(first, nr)
  }

  /**
   * mremap moved nr pages. The kernel does not let the two ranges overlap. The end of the old place is another event.
   */
  remap(from: number, to: number, nr: number): void {
    const pieces: Piece[] = []
    const arriving: Array<[first: number, nr: number]> = []
    this.#pending.forEachRunIn(from, nr, (first, length) => arriving.push([first - from + to, length]))
    this.#moved.forEachSource(from, nr, (current, source, length) => {
      // A run without pending pages needs no translation any more.
      const next = this.#pending.firstFrom(current)
      if (next >= 0 && next < current + length)
        pieces.push({ first: current - from + to, nr: length, source })
    })
    this.remove(from, nr)
    this.remove(to, nr)
    for (const [first, length] of arriving) this.#pending.addRange(first, length)
    this.#registered.addRange(to, nr)
    this.#moved.add(pieces)
  }

  /** The child's map at the moment of the fork: the same pages are to come in both. */
  fork(): LazyMap {
    return new LazyMap(this.#pending.clone(), this.#registered.clone(), this.#moved.clone())
  }

  /** exec or exit: the address space is gone. */
  clear(): void {
    this.#pending.clear()
    this.#registered.clear()
    this.#moved.cut(0, Number.MAX_SAFE_INTEGER)
  }

  /** Replays a recorded event. */
  apply(event: LazyEvent): void {
    switch (event.type) {
      case 'installed':
        this.#pending.removeRange(event.first, event.nr)
        return
      case 'remove':
        this.remove(event.first, event.nr)
        return
      case 'unmap':
        this.unmap(event.first, event.nr)
        return
      case 'remap':
        this.remap(event.from, event.to, event.nr)
        return
    }
  }

  /**
   * Source pages first .. first+nr-1 have arrived: calls back for each run of current pages that still waits for them.
   * It skips discarded and installed pages. Do not change the map in the callback.
   */
  forEachWaiting(
    source: number,
    nr: number,
    callback: (current: number, source: number, nr: number) => void,
  ): void {
    if (this.#moved.isEmpty) {
      this.#pending.forEachRunIn(source, nr, (first, length) => callback(first, first, length))
      return
    }
    this.#moved.forEachCurrent(source, nr, (current, from, length) => {
      this.#pending.forEachRunIn(current, length, (first, part) =>
        callback(first, from + (first - current), part),
      )
    })
  }

  /** Finds where to install pushed source runs: [current page, source page, number of pages]. */
  sourceRunsPendingFor(runs: RunTable, nrRuns = runCapacity(runs)): Array<[number, number, number]> {
    const waiting: Array<[number, number, number]> = []
    for (let i = 0; i < nrRuns; i++) {
      this.forEachWaiting(runs[2 * i], runs[2 * i + 1], (current, source, nr) =>
        waiting.push([current, source, nr]),
      )
    }
    return waiting
  }

  /** All pending pages by the source's numbers, for a destination that reconnects. */
  pendingSourcePages(): PageSet {
    if (this.#moved.isEmpty) return this.#pending.clone()
    const pages = new PageSet()
    this.#pending.forEachRun((first, nr) => {
      this.#moved.forEachSource(first, nr, (_current, source, length) => pages.addRange(source, length))
    })
    return pages
  }

  /** All pending pages, as runs of [current page, source page, number of pages]. */
  forEachPending(callback: (current: number, source: number, nr: number) => void): void {
    this.#pending.forEachRun((first, nr) => {
      if (this.#moved.isEmpty) callback(first, first, nr)
      else this.#moved.forEachSource(first, nr, callback)
    })
  }

  /** Source pages of the pending pages at first .. first+nr-1. */
  forEachPendingIn(first: number, nr: number, callback: (source: number, nr: number) => void): void {
    this.#pending.forEachRunIn(first, nr, (current, length) => {
      if (this.#moved.isEmpty) callback(current, length)
      else this.#moved.forEachSource(current, length, (_current, source, part) => callback(source, part))
    })
  }

  /** The whole map as a table, three numbers per run: pending pages, then registered ones. */
  toTable(): Float64Array {
    const stretches: number[] = []
    this.forEachPending((page, source, nr) => stretches.push(page, source, nr))
    this.#registered.forEachRun((first, nr) => stretches.push(first, noSource, nr))
    return Float64Array.from(stretches)
  }

  static fromTable(stretches: Float64Array): LazyMap {
    const pending = new PageSet()
    const registered = new PageSet()
    const pieces: Piece[] = []
    for (let i = 0; i < stretches.length; i += 3) {
      const [first, source, nr] = stretches.subarray(i, i + 3)
      if (source === noSource) {
        registered.addRange(first, nr)
        continue
      }
      pending.addRange(first, nr)
      if (first !== source) pieces.push({ first, nr, source })
    }
    const moved = new MovedPages()
    moved.add(pieces)
    return new LazyMap(pending, registered, moved)
  }

  /** The pending pages by current address; a copy. */
  pendingPages(): PageSet {
    return this.#pending.clone()
  }
}
