import { closeSync, openSync, readdirSync } from 'node:fs'
import { addressOf, PageferryError, pageBytes, type RunTable } from '@pageferry/base'
import { fds } from '@pageferry/kernel'
import { type Area, type AreaMap, carriesPages, PageSet } from '@pageferry/pages'
import { readMaps } from '../proc/maps.js'

/** Results of a scan of the workload's page tables. */
export interface MemoryScan {
  /** Pages with content of the process's own (pages/source-pages.ts, FrozenMemory.presentOrSwapped). */
  present: PageSet
  /**
   * SWAPPED and not PRESENT: either swapped out, or only a write-protect marker of the kernel. The two look the same.
   */
  doubtful: PageSet
  /** Pages of shared anonymous objects, whatever this process's page tables say. */
  objectPages: PageSet
  /** Guard regions (madvise(2), MADV_GUARD_INSTALL): pages without content whose touch is a SIGSEGV. */
  guards: PageSet
  /** Pages written since the previous scan. Always a superset of the truth, never less. */
  written: PageSet
}

/**
 * Finds the pages that were written between two scans. There are three ways with one interface: write protection by
 * userfaultfd, soft-dirty bits, and comparing page contents.
 */
export interface Tracker {
  readonly kind: TrackerKind
  /** Reports and forgets the pages that were written since the last call. Writes after it count for the next one. */
  scan(map: AreaMap): MemoryScan
  /** Gives the content of these pages as read after the scan, to trackers that compare contents. */
  noteRead(runs: RunTable, nrRuns: number, data: Uint8Array): void
  close(): void
}

export const trackerKinds = ['wp-async', 'soft-dirty', 'page-hash'] as const
export type TrackerKind = (typeof trackerKinds)[number]

export function emptyScan(): MemoryScan {
  return {
    present: new PageSet(),
    doubtful: new PageSet(),
    objectPages: new PageSet(),
    guards: new PageSet(),
    written: new PageSet(),
  }
}

/** Pages of a shared anonymous object. No tracker sees writes through other mappings, so they never are clean. */
export function scanSharedMemory(pid: number, area: Area, scan: MemoryScan): void {
  const name = readdirSync(`/proc/${pid}/map_files`).find((entry) => {
    const [from, to] = entry.split('-').map((part) => BigInt(`0x${part}`))
    return from <= addressOf(area.start) && addressOf(area.start) < to
  })
  if (name === undefined) {
    // The area may be gone since the map was read; the next look at the map shows that. If it exists, its contents
    // would be lost.
    if (!readMaps(pid).some(({ start }) => start === area.start)) return
    throw new PageferryError(
      'KERNEL',
      `/proc/${pid}/map_files does not show the shared memory at page 0x${area.start.toString(16)}`,
    )
  }
  const fd = openSync(`/proc/${pid}/map_files/${name}`, 'r')
  try {
    const end = area.offset + BigInt(area.nrPages * pageBytes)
    let at = area.offset
    while (at < end) {
      const data = seek(fd, at, fds.SEEK_DATA)
      if (data === null || data >= end) break
      const hole = seek(fd, data, fds.SEEK_HOLE) ?? end
      const stop = hole < end ? hole : end
      const first = area.start + Number((data - area.offset) / BigInt(pageBytes))
      const nr = Number((stop - data + BigInt(pageBytes - 1)) / BigInt(pageBytes))
      scan.objectPages.addRange(first, nr)
      at = hole
    }
  } finally {
    closeSync(fd)
  }
}

function seek(fd: number, offset: bigint, whence: number): bigint | null {
  try {
    return fds.lseek(fd, offset, whence)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENXIO') return null
    throw error
  }
}

/** Areas whose page tables show the process's pages. The others have no content that travels. */
export function* trackedAreas(map: AreaMap): Generator<Area> {
  for (const area of map.areas) if (carriesPages(area)) yield area
}
