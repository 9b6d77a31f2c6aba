import { type RunTable, runCapacity } from '@pageferry/base'
import { AreaMap, diffAreas, travelsInRounds } from './areas.js'
import { type FinalPagemap, makeFinalPagemap } from './final-pagemap.js'
import { PageSet } from './page-set.js'
import type { WriteHistory } from './write-history.js'

/**
 * What the source knows about each page of one address space. A page is in at most one of
 *
 *   sent     its content went to the destination, and the tracker has not said "written" since
 *   zero     it was all zeros when it was read, and has not been written since; nothing was sent
 *   todo     taken out for the current round, not reported as sent yet
 *   written  written since the current round was taken out, or never sent (may overlap todo)
 *
 * or in none: never seen. The order within a round matters: the tracker's scan re-protects what it reports,
 * *then* pages are read. A write between the two is in the content and is reported again; a write after the
 * read is reported. So `noteSent` may come late and may name pages that were written again meanwhile: those
 * stay to do. Nothing here is trusted about what the workload discarded: the tracker may stay silent about
 * that, and the final pagemap compares with what is there (final-pagemap.ts). Only private memory takes part in
 * rounds.
 *
 * The destination executes the same area plan as `noteAreas` computes, so tell each round's areas here before
 * the round's pages are taken.
 */
export class SourcePages {
  readonly #sent = new PageSet()
  readonly #zero = new PageSet()
  readonly #written = new PageSet()
  readonly #todo = new PageSet()
  #areas = new AreaMap()
  #carried = new PageSet()

  /** The map that the destination is brought to next. Forgets every page whose mapping is lost there. */
  noteAreas(areas: AreaMap): void {
    const lost = new PageSet()
    for (const change of diffAreas(this.#areas, areas)) {
      if (change.op === 'unmap') lost.addRange(change.first, change.nr)
    }
    const carried = areas.pages(travelsInRounds)
    // Lost on the destination but, as far as the tracker is concerned, perhaps clean: it would never be reported.
    const again = this.#sent.clone().union(this.#zero).union(this.#todo).intersect(lost).intersect(carried)
    for (const set of [this.#sent, this.#zero, this.#todo, this.#written]) set.intersect(carried)
    this.#sent.subtract(lost)
    this.#zero.subtract(lost)
    this.#todo.subtract(lost)
    this.#written.union(again)
    this.#areas = areas
    this.#carried = carried
  }

  /**
   * The tracker says: written since it was last protected (or mapped where nothing was tracked). A tracker that
   * ever protects a page that is not there must report it here: such a page carries a marker, a later read maps
   * zeros that look clean, and what was sent before a discard would seem to be still valid.
   */
  noteWritten(first: number, nr: number): void {
    this.#written.addRange(first, nr)
    this.#sent.removeRange(first, nr)
    this.#zero.removeRange(first, nr)
  }

  noteWrittenPages(pages: PageSet): void {
    this.#written.union(pages)
    this.#sent.subtract(pages)
    this.#zero.subtract(pages)
  }

  /** These pages were read after the round's scan and are on their way. */
  noteSent(runs: RunTable, nrRuns = runCapacity(runs)): void {
    this.#settle(this.#sent, this.#zero, runs, nrRuns)
  }

  /** These pages were read after the round's scan and were all zeros; nothing is sent for them. */
  noteZero(runs: RunTable, nrRuns = runCapacity(runs)): void {
    this.#settle(this.#zero, this.#sent, runs, nrRuns)
  }

  #settle(into: PageSet, outOf: PageSet, runs: RunTable, nrRuns: number): void {
    const settled = PageSet.fromRuns(runs, nrRuns)
    this.#todo.subtract(settled)
    outOf.subtract(settled)
    into.union(settled.subtract(this.#written))
  }

  /** The tracker knows that these are gone: unmapped, or a mapping that replaced another. */
  noteUnmapped(first: number, nr: number): void {
    for (const set of [this.#sent, this.#zero, this.#todo, this.#written]) set.removeRange(first, nr)
  }

  /** What a round would have to send now. */
  get dirtyCount(): number {
    return this.#written.clone().union(this.#todo).intersect(this.#carried).count
  }

  get sentCount(): number {
    return this.#sent.count
  }

  get zeroCount(): number {
    return this.#zero.count
  }

  /**
   * Takes out the pages of the next round: written, never sent, or left over from the round before. What lies
   * outside the areas told last stays to do: the destination has no place for it yet.
   */
  roundTodo(): PageSet {
    this.#todo.union(this.#written).intersect(this.#carried)
    this.#written.subtract(this.#todo)
    return this.#todo.clone()
  }

  /** The workload is frozen: classifies every page of its memory. See final-pagemap.ts. */
  finalPagemap(frozen: FrozenMemory): FinalPagemap {
    this.noteAreas(frozen.areas)
    const sent = this.#sent.clone().subtract(frozen.written)
    const zero = this.#zero.clone().subtract(frozen.written)
    return makeFinalPagemap(frozen, { sent, zero })
  }
}

export type MigrationMode = 'hybrid' | 'precopy' | 'postcopy'

/** What the last scan of the stopped workload found. */
export interface FrozenMemory {
  areas: AreaMap
  /**
   * What the page tables hold: PRESENT or SWAPPED. In file mappings without what the scan calls FILE, which is
   * page cache and not written privately.
   */
  presentOrSwapped: PageSet
  /** Written since the last protect, and all pages of areas that were not tracked. */
  written: PageSet
  /**
   * Pages that may only look as if they were there: SWAPPED and not PRESENT. That is how the kernel shows its
   * write-protect markers, also for discarded pages, and nothing tells a marker from a page that really was
   * swapped out. Never PARENT: read, they tell the truth.
   */
  doubtful?: PageSet
  /** Pages of shared anonymous areas that their object holds (SEEK_DATA), in a page table or not. */
  objectPages?: PageSet
  /** Pages that threads need to run and to exit, see kernel-facts: never PE_LAZY, never a hole. */
  neverLazy: PageSet
  /** False when devices may have written behind the page tables: then nothing is PARENT. */
  trackingTrusted: boolean
  mode: MigrationMode
  /** Hybrid: the hottest lazy pages travel inside the freeze instead, at most so many. */
  presentBudgetPages?: number
  history?: WriteHistory
}
