import { type Area, AreaMap, diffAreas } from './areas.js'
import { type PagemapEntry, pagemapEntries, readPagemapEntries } from './final-pagemap.js'
import { PageSet } from './page-set.js'
import { reconcile } from './reconcile.js'
import { SourcePages } from './source-pages.js'
import { WriteHistory } from './write-history.js'

/** One large area beside small ones: a program of 64 MiB that has written little since the last round. */
const largeStart = 0x7f_0000
const largePages = 16_384
const nrSmallAreas = 30
const nrWritten = 80
/** Measured: bookkeeping and pagemap of such a program took 4 to 8 ms, and 1 to 1.5 after ten of these passes. */
const passes = 12

/**
 * Runs the bookkeeping of a freeze on made-up sets. It runs once per migration and inside the downtime, where V8 takes
 * several times as long for code that it has not run yet. The number of passes and the kinds of cases matter, not the
 * size of the sets.
 *
 * @param transfer encodes and decodes the entries, as on their way to the other side
 */
export function rehearseFreeze(transfer: (entries: Iterable<PagemapEntry>) => Iterable<PagemapEntry>): void {
  const areas = madeUpAreas()
  for (let pass = 0; pass < passes; pass++) {
    const pages = new SourcePages()
    const history = new WriteHistory()
    const all = PageSet.of([largeStart, largePages])
    pages.noteAreas(areas)
    pages.noteWrittenPages(all)
    pages.noteSent(pages.roundTodo().runTable())
    const written = new PageSet()
    for (let i = 0; i < nrWritten; i++) written.addRange(largeStart + i * 201, 1 + (i % 3))
    history.record(written, 2)
    const final = pages.finalPagemap({
      areas,
      presentOrSwapped: all,
      doubtful: PageSet.of([largeStart + 7, 1]),
      written,
      neverLazy: PageSet.of([largeStart, 4]),
      trackingTrusted: true,
      mode: 'hybrid',
      presentBudgetPages: 40,
      history,
    })
    const sets = readPagemapEntries(transfer(pagemapEntries(final)))
    diffAreas(areas, areas)
    reconcile(all, sets, areas)
  }
}

function madeUpAreas(): AreaMap {
  const common = { prot: 3, flags: 0x22, madv: 0, growsDown: false, offset: 0n } as const
  const small = Array.from({ length: nrSmallAreas }, (_, i): Area => {
    const place = { ...common, start: 0x5_0000 + 64 * i, nrPages: 32 }
    return i % 3 === 0
      ? { ...place, kind: 'anon', lazyEligible: true }
      : { ...place, kind: 'file-private', lazyEligible: false, path: '/lib/made-up', backingId: '8:1' }
  })
  return new AreaMap([
    ...small,
    { ...common, start: largeStart, nrPages: largePages, kind: 'anon', lazyEligible: true },
  ])
}
