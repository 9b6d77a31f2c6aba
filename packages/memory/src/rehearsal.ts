import { AreaMap } from './areas.js'
import { pagemapEntries, readPagemapEntries } from './final-pagemap.js'
import { PageSet } from './page-set.js'
import { reconcile } from './reconcile.js'
import { SourcePages } from './source-pages.js'
import { WriteHistory } from './write-history.js'

const nrPages = 65_536
const passes = 3

/**
 * Runs the bookkeeping of a freeze on made-up sets. It happens once per migration and inside the blackout,
 * where code that V8 has not met yet takes several times as long.
 */
export function rehearseFreeze(): void {
  const area = {
    kind: 'anon',
    prot: 3,
    flags: 0x22,
    madv: 0,
    growsDown: false,
    lazyEligible: true,
    offset: 0n,
  } as const
  const areas = new AreaMap([{ ...area, start: 0x1000, nrPages }])
  for (let pass = 0; pass < passes; pass++) {
    const pages = new SourcePages()
    const history = new WriteHistory()
    const all = PageSet.of([0x1000, nrPages])
    pages.noteAreas(areas)
    pages.noteWrittenPages(all)
    pages.noteSent(pages.roundTodo().runTable())
    const written = new PageSet()
    for (let i = 0; i < nrPages; i += 41) written.addRange(0x1000 + i, 1 + (i % 3))
    history.record(written, 2)
    const final = pages.finalPagemap({
      areas,
      presentOrSwapped: all,
      written,
      neverLazy: PageSet.of([0x1000, 4]),
      trackingTrusted: true,
      mode: 'hybrid',
      presentBudgetPages: 100,
      history,
    })
    const sets = readPagemapEntries(pagemapEntries(final))
    reconcile(all, sets, areas)
  }
}
