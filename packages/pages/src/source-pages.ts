import { type RunTable, runCapacity } from '@pageferry/base'
import { AreaMap, diffAreas, travelsInRounds } from './areas.js'
import { type FinalPagemap, makeFinalPagemap } from './final-pagemap.js'
import { PageSet } from './page-set.js'
import type { WriteHistory } from './write-history.js'

/**
 * The source's knowledge of each page of one address space. A page is in at most one of
 *
 *   sent     its content went to the destination, and the tracker has not reported it as written since
 *   zero     it was all zeros when it was read, and has not been written since; nothing was sent
 *   todo     taken out for the current round, not reported as sent yet
 *   written  written since the current round was taken out, or never sent (may overlap todo)
 *
 * or in none: never seen.
 *
 * The order within a round matters: the tracker's scan protects the reported pages again, *then* they are read. A write
 * between the two is in the content and is reported again; a write after the read is reported. So `noteSent` may come
 * late and may name pages that were written again meanwhile: those stay to do.
 *
 * Discards are not known here, because the tracker may stay silent about them. The final pagemap compares with the
 * pages that are present (final-pagemap.ts). Only private memory takes part in rounds.
 *
 * The destination executes the same area plan as `noteAreas` computes. So call it with each round's areas before the
 * round's pages are taken.
 */
export class SourcePages {
  readonly #sent = new PageSet()
  readonly #zero = new PageSet()
  readonly #written = new PageSet()
  readonly #todo = new PageSet()
  #areas = new AreaMap()
  #carried = new PageSet()

  /** The map to which the destination changes next. Forgets every page whose mapping is lost there. */
  noteAreas(areas: AreaMap): void {
    const lost = new PageSet()
    for (const change of diffAreas(this.#areas, areas)) {
      if (change.op === 'unmap') lost.addRange(change.first, change.nr)
    }
    const carried = areas.pages(travelsInRounds)
    // The destination loses these pages, but for the tracker they may be clean: it would never report them.
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
   * The tracker reports pages as written since they were last protected, or mapped where nothing was tracked. A tracker
   * that ever protects a missing page must report it here. Such a page carries a marker, and a later read maps zeros
   * that look clean. Content sent before a discard would then seem to be still valid.
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

  /** These pages were read after the round's scan and are under way. */
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

  /** The tracker knows that these pages are gone: unmapped, or replaced by another mapping. */
  noteUnmapped(first: number, nr: number): void {
    for (const set of [this.#sent, this.#zero, this.#todo, this.#written]) set.removeRange(first, nr)
  }

  /** Pages that a round would have to send now. */
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
   * Takes out the pages of the next round: written, never sent, or left over from the round before. Pages outside the
   * latest areas stay to do: the destination has no place for them yet.
   */
  roundTodo(): PageSet {
    this.#todo.union(this.#written).intersect(this.#carried)
    this.#written.subtract(this.#todo)
    return this.#todo.clone()
  }

  /** Classifies every page of the frozen workload's memory. See final-pagemap.ts. */
  finalPagemap(frozen: FrozenMemory): FinalPagemap {
    this.noteAreas(frozen.areas)
    const sent = this.#sent.clone().subtract(frozen.written)
    const zero = this.#zero.clone().subtract(frozen.written)
    return makeFinalPagemap(frozen, { sent, zero })
  }
}

export type MigrationMode = 'hybrid' | 'precopy' | 'postcopy'

/** Results of the last scan of the stopped workload. */
export interface FrozenMemory {
  areas: AreaMap
  /**
   * Pages that the page tables show as PRESENT or SWAPPED. File mappings exclude pages that the scan calls FILE: those
   * are page cache and not written privately.
   */
  presentOrSwapped: PageSet
  /** Pages written since they were last protected, and all pages of areas that were not tracked. */
  written: PageSet
  /**
   * Pages that may only look present: SWAPPED and not PRESENT. The kernel also shows its write-protect markers like
   * that, even for discarded pages, and nothing distinguishes a marker from a page that was swapped out. They are never
   * PARENT. Reading them gives the right content.
   */
  doubtful?: PageSet
  /** Pages of shared anonymous areas that their object holds (SEEK_DATA), in a page table or not. */
  objectPages?: PageSet
  /** Pages that threads need to run and to exit: never PE_LAZY, never a hole. */
  neverLazy: PageSet
  /** False when devices may have written past the page tables: then no page is PARENT. */
  trackingTrusted: boolean
  mode: MigrationMode
  /** Hybrid: the largest number of hot lazy pages that travel inside the freeze instead. */
  presentBudgetPages?: number
  history?: WriteHistory
}
