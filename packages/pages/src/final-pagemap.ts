import { carriesPages, isPrivateAnon } from './areas.js'
import { PageSet } from './page-set.js'
import type { FrozenMemory } from './source-pages.js'

/**
 * The final pagemap: the only authority on the contents of the workload's memory. It is made while the workload is
 * frozen, by these rules in this order, for pages of areas whose contents travel:
 *
 *   sent, clean since, still there            PE_PARENT   the destination has it installed
 *   not there                                 no entry    never touched or discarded: reads as zeros
 *                                                         or as the file (private file mapping)
 *   known to be all zeros, clean, private     no entry    reads as zeros
 *     anonymous
 *   eligible, mode allows, not never-lazy     PE_LAZY     fetched on a fault, or pushed
 *   everything else that is there             PE_PRESENT  sent inside the freeze
 *
 * Exceptions that keep this true:
 * - The page tables decide whether a page is "still there", not the tracker: a discarded page may simply vanish from
 * the tracker's scan.
 * - Shared anonymous memory is an object, not page tables: everything in the object is PE_PRESENT.
 * - A never-lazy page of an eligible area must not fault even if it is a hole: it is sent (as zeros).
 * - Untrusted tracking leaves neither PARENT nor known zeros.
 */

/** Flag bits of a pagemap entry, as in CRIU's images. */
export const PE_PARENT = 1
export const PE_LAZY = 2
export const PE_PRESENT = 4

export interface PagemapEntry {
  first: number
  nr: number
  /** One of PE_PARENT, PE_LAZY, PE_PRESENT. */
  flags: number
}

export interface FinalPagemap {
  parent: PageSet
  lazy: PageSet
  present: PageSet
  counts: {
    parent: number
    lazy: number
    present: number
    /** Present and all zeros, so left out. */
    zero: number
    /** Every other page of private anonymous areas without an entry: never touched, or discarded. */
    hole: number
  }
  /** How many of `present` could have been lazy, and travel in the freeze because they are hot or few. */
  promoted: number
}

export interface KnownPages {
  /** Sent and clean. */
  sent: PageSet
  /** All zeros and clean. */
  zero: PageSet
}

export function makeFinalPagemap(frozen: FrozenMemory, pages: KnownPages): FinalPagemap {
  const { areas, trackingTrusted, neverLazy, mode } = frozen
  const carried = areas.pages(carriesPages)
  const privateAnon = areas.pages(isPrivateAnon)
  const eligible = areas.pages((area) => area.lazyEligible && carriesPages(area))
  const doubtful = frozen.doubtful ?? new PageSet()

  const shared = areas.pages((area) => area.kind === 'shared-anon')

  const there = frozen.presentOrSwapped.clone().union(doubtful)
  there.union((frozen.objectPages ?? new PageSet()).clone().intersect(shared)).intersect(carried)
  const parent = new PageSet()
  const zero = new PageSet()
  if (trackingTrusted) {
    parent.union(pages.sent).intersect(frozen.presentOrSwapped).intersect(carried).subtract(doubtful)
    zero.union(pages.zero).intersect(there).intersect(privateAnon)
    zero.subtract(neverLazy.clone().intersect(eligible))
  }

  const rest = there.subtract(parent).subtract(zero)
  rest.union(neverLazy.clone().intersect(eligible).subtract(parent))

  const lazy = new PageSet()
  let promoted = 0
  if (mode !== 'precopy') {
    lazy.union(rest).intersect(eligible).subtract(neverLazy)
    if (mode === 'hybrid' && frozen.history !== undefined) {
      const budget = frozen.presentBudgetPages ?? 0
      // If all of them fit, nothing is left to discard or to fault on, and the source is free at once.
      const hot = lazy.count <= budget ? lazy.clone() : frozen.history.hottest(lazy, budget)
      promoted = hot.count
      lazy.subtract(hot)
    }
  }
  const present = rest.subtract(lazy)

  const inEntries = [parent, lazy, present].reduce((sum, set) => sum + intersectionCount(set, privateAnon), 0)
  const counts = {
    parent: parent.count,
    lazy: lazy.count,
    present: present.count,
    zero: zero.count,
    hole: privateAnon.count - inEntries - zero.count,
  }
  return { parent, lazy, present, counts, promoted }
}

/** The entries in ascending order, for the pagemap image and for the wire. */
export function* pagemapEntries({ parent, lazy, present }: FinalPagemap): Generator<PagemapEntry> {
  const sources = [
    { flags: PE_PARENT, runs: parent.runs() },
    { flags: PE_LAZY, runs: lazy.runs() },
    { flags: PE_PRESENT, runs: present.runs() },
  ].map(({ flags, runs }) => ({ flags, runs, head: runs.next() }))
  for (;;) {
    let lowest: (typeof sources)[number] | undefined
    for (const source of sources) {
      if (source.head.done) continue
      if (lowest === undefined || source.head.value[0] < lowest.head.value[0]) lowest = source
    }
    if (lowest === undefined) return
    const [first, nr] = lowest.head.value
    yield { first, nr, flags: lowest.flags }
    lowest.head = lowest.runs.next()
  }
}

/** The inverse, on the destination. Entries may come in any order; throws RangeError on an overlap. */
export function readPagemapEntries(
  entries: Iterable<PagemapEntry>,
): Omit<FinalPagemap, 'counts' | 'promoted'> {
  const sets = { parent: new PageSet(), lazy: new PageSet(), present: new PageSet() }
  const all = new PageSet()
  for (const { first, nr, flags } of entries) {
    if (all.addRange(first, nr) !== nr) throw new RangeError(`pagemap entries overlap at page ${first}`)
    // A page that a parent image or the destination has is present, whatever else CRIU noted about it.
    if (flags & PE_PARENT) sets.parent.addRange(first, nr)
    else if (flags & PE_PRESENT) sets.present.addRange(first, nr)
    else if (flags & PE_LAZY) sets.lazy.addRange(first, nr)
    else throw new RangeError(`pagemap entry at page ${first} has unknown flags ${flags}`)
  }
  return sets
}

function intersectionCount(a: PageSet, b: PageSet): number {
  return a.clone().intersect(b).count
}
