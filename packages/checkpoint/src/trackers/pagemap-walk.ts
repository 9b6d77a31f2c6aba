import { pagemap } from '@pageferry/kernel'
import type { Area } from '@pageferry/memory'
import type { MemoryScan } from './tracker.js'

const regionsPerScan = 16_384
const buffer = new Float64Array(3 * regionsPerScan)

/**
 * PAGEMAP_SCAN over one area: calls back for every run of pages that are the process's own, with their
 * categories. Page-cache pages of a file mapping (FILE) and the shared zero page (PFNZERO) are not: the first
 * read as the file, the second as zeros, on the destination too.
 */
export function walkArea(
  pagemapFd: number,
  area: Area,
  flags: number,
  callback: (first: number, nr: number, categories: number) => void,
): void {
  const end = area.start + area.nrPages
  // Asking for FILE makes the kernel look up the struct page of every page: three times the time, and
  // anonymous areas have none.
  const notOurs =
    area.kind === 'file-private' ? pagemap.PAGE_IS_FILE | pagemap.PAGE_IS_PFNZERO : pagemap.PAGE_IS_PFNZERO
  let from = area.start
  while (from < end) {
    const { regions } = pagemap.scan(
      pagemapFd,
      from,
      end,
      {
        flags,
        inverted: notOurs,
        mask: notOurs,
        anyof: pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_SWAPPED,
        returnMask: pagemap.PAGE_IS_WRITTEN | pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_SWAPPED,
        maxPages: 0,
      },
      buffer,
    )
    for (let i = 0; i < regions; i++) callback(buffer[3 * i], buffer[3 * i + 1], buffer[3 * i + 2])
    if (regions < regionsPerScan) return
    // Not walk_end: above 512 regions it may lie before regions that were reported already.
    from = buffer[3 * regions - 3] + buffer[3 * regions - 2]
  }
}

/** Enters a region of `walkArea`: with content, or perhaps only a marker. */
export function noteThere(scan: MemoryScan, first: number, nr: number, categories: number): void {
  if ((categories & pagemap.PAGE_IS_PRESENT) !== 0) scan.present.addRange(first, nr)
  else scan.doubtful.addRange(first, nr)
}
