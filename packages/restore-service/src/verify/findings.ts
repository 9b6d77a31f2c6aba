import { addressOf, type PageferryError } from '@pageferry/base'
import { type DifferingPage, maxNamedPages, type VerifyReport, verifyError } from '@pageferry/migration'
import { type AreaMap, PageSet } from '@pageferry/pages'

/** The results of the comparison so far. */
export class Findings {
  /** Pages whose hashes were compared. */
  readonly compared = new PageSet()
  readonly differing = new PageSet()
  readonly unproven = new PageSet()
  /** Why some pages are unproven. */
  reason = ''

  noteUnproven(pages: PageSet, reason: string): void {
    if (pages.isEmpty) return
    this.unproven.union(pages)
    this.reason ||= reason
  }

  get areGood(): boolean {
    return this.differing.isEmpty && this.unproven.isEmpty && this.reason === ''
  }

  /** @param areas the final map of the workload; null: only addresses are known */
  report(areas: AreaMap | null): Pick<VerifyReport, 'pages' | 'mismatches' | 'unproven' | 'differing'> {
    return {
      pages: this.compared.count,
      mismatches: this.differing.count,
      unproven: this.unproven.count,
      differing: nameSome(this.differing.clone().union(this.unproven), areas),
    }
  }

  /** VERIFY_FAILED in one sentence, with the addresses of the first pages. */
  toError(areas: AreaMap | null): PageferryError {
    const { mismatches, unproven, differing } = this.report(areas)
    return verifyError({ mismatches, unproven, differing }, this.reason)
  }
}

function nameSome(pages: PageSet, areas: AreaMap | null): DifferingPage[] {
  const named: DifferingPage[] = []
  pages.forEachRun((first, nr) => {
    for (let page = first; page < first + nr && named.length < maxNamedPages; page++) {
      named.push({ address: `0x${addressOf(page).toString(16)}`, area: areaName(areas, page) })
    }
  })
  return named
}

function areaName(areas: AreaMap | null, page: number): string {
  if (areas === null) return ''
  const area = areas.find(page)
  if (area === undefined) return 'in no area'
  if (area.path !== undefined) return area.path
  return area.kind === 'heap' || area.kind === 'stack' ? `[${area.kind}]` : area.kind
}
