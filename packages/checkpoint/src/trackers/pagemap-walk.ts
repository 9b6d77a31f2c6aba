import { closeSync, openSync } from 'node:fs'
import { isKernelError } from '@pageferry/base'
import { pagemap } from '@pageferry/kernel'
import type { Area } from '@pageferry/pages'
import type { MemoryScan } from './tracker.js'

const regionsPerScan = 16_384
const buffer = new Float64Array(3 * regionsPerScan)
const entriesPerRead = 65_536
const entries = new BigUint64Array(entriesPerRead)

/**
 * PAGEMAP_SCAN over one area: calls back for every run of pages that are the process's own, with their categories. It
 * skips page-cache pages of a file mapping (FILE) and the shared zero page (PFNZERO): on the destination too, the first
 * read as the file, the second as zeros. Guard regions are entered into `scan`.
 */
export function walkArea(
  pagemapFd: number,
  area: Area,
  flags: number,
  scan: MemoryScan,
  callback: (first: number, nr: number, categories: number) => void,
): void {
  const end = area.start + area.nrPages
  // With FILE the kernel looks up the struct page of every page, which takes three times as long. Anonymous areas have
  // no such pages.
  const notOurs =
    area.kind === 'file-private' ? pagemap.PAGE_IS_FILE | pagemap.PAGE_IS_PFNZERO : pagemap.PAGE_IS_PFNZERO
  guardCategory ??= probeGuardCategory()
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
        returnMask:
          pagemap.PAGE_IS_WRITTEN | pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_SWAPPED | guardCategory,
        maxPages: 0,
      },
      buffer,
    )
    for (let i = 0; i < regions; i++) {
      const [first, nr, categories] = [buffer[3 * i], buffer[3 * i + 1], buffer[3 * i + 2]]
      if ((categories & guardCategory) !== 0) scan.guards.addRange(first, nr)
      else callback(first, nr, categories)
    }
    if (regions < regionsPerScan) return
    // Do not use walk_end: above 512 regions it may lie before regions that were reported already.
    from = buffer[3 * regions - 3] + buffer[3 * regions - 2]
  }
}

/** 0 if the kernel (before 6.15) refuses a scan that names it. */
let guardCategory: number | undefined

function probeGuardCategory(): number {
  const pagemapFd = openSync('/proc/self/pagemap', 'r')
  const returnMask = pagemap.PAGE_IS_GUARD
  try {
    pagemap.scan(
      pagemapFd,
      1,
      2,
      { flags: 0, inverted: 0, mask: 0, anyof: 0, returnMask, maxPages: 0 },
      buffer,
    )
    return pagemap.PAGE_IS_GUARD
  } catch (error) {
    if (isKernelError(error, 'EINVAL')) return 0
    throw error
  } finally {
    closeSync(pagemapFd)
  }
}

/** Does the same through the entries that every kernel has (proc_pid_pagemap(5)): calls back page by page. */
export function readArea(
  pagemapFd: number,
  area: Area,
  scan: MemoryScan,
  callback: (page: number, entry: bigint) => void,
): void {
  const here = pagemap.PM_PRESENT | pagemap.PM_SWAPPED
  const file = area.kind === 'file-private'
  for (let done = 0; done < area.nrPages; ) {
    const first = area.start + done
    const got = pagemap.read(pagemapFd, first, Math.min(entriesPerRead, area.nrPages - done), entries)
    if (got === 0) return
    for (let i = 0; i < got; i++) {
      const entry = entries[i]
      if ((entry & here) === 0n || (file && (entry & pagemap.PM_FILE_OR_SHARED) !== 0n)) continue
      if ((entry & pagemap.PM_GUARD_REGION) !== 0n) scan.guards.addRange(first + i, 1)
      else callback(first + i, entry)
    }
    done += got
  }
}

/** Enters a region of `walkArea`: with content, or perhaps only a marker. */
export function noteThere(scan: MemoryScan, first: number, nr: number, categories: number): void {
  if ((categories & pagemap.PAGE_IS_PRESENT) !== 0) scan.present.addRange(first, nr)
  else scan.doubtful.addRange(first, nr)
}
