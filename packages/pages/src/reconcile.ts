import { type AreaMap, isPrivateAnon } from './areas.js'
import type { FinalPagemap } from './final-pagemap.js'
import type { PageSet } from './page-set.js'

/**
 * Changes to the skeleton's pages that the destination must make before the workload may run. It reads the skeleton's
 * page tables and does not rely on its own records: a lazy page that is present, for whatever reason, would never
 * fault, and the workload would read stale data.
 */
export interface Reconciliation {
  /** Pages to discard (madvise DONTNEED) before anything is installed. */
  discard: PageSet
  /** PE_PARENT pages that are missing. Any such page means a defect: the migration must fail. */
  missing: PageSet
}

type Sets = Pick<FinalPagemap, 'parent' | 'lazy' | 'present'>

/**
 * `there`: PRESENT or SWAPPED in the skeleton, for file mappings without page-cache pages. The areas are the final
 * ones, already applied. Shared anonymous pages cannot be discarded and need not be: none was installed before.
 * PE_PRESENT pages are not discarded; installing overwrites them.
 */
export function reconcile(there: PageSet, final: Sets, areas: AreaMap): Reconciliation {
  const discardable = areas.pages((area) => isPrivateAnon(area) || area.kind === 'file-private')
  const discard = there.clone().subtract(final.parent).subtract(final.present).intersect(discardable)
  const missing = final.parent.clone().subtract(there)
  return { discard, missing }
}

/**
 * The state that must hold when the workload is about to run, for --verify. `unexpected` pages are present although
 * they are lazy or in no entry; `missing` ones are in an entry and not present. The first concerns eligible areas only:
 * elsewhere a page may come by itself (a file page that was only read).
 */
export function checkInstalled(there: PageSet, final: Sets, areas: AreaMap) {
  const eligible = areas.pages((area) => area.lazyEligible)
  const installed = final.parent.clone().union(final.present)
  return {
    missing: installed.clone().subtract(there),
    unexpected: there.clone().subtract(installed).intersect(eligible),
  }
}
