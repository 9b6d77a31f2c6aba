import { addon } from './addon.js'

/** /proc/PID/pagemap: which pages are present, and which were written. Pages are page numbers, not addresses. */

export const PAGE_IS_WPALLOWED = 1
export const PAGE_IS_WRITTEN = 2
export const PAGE_IS_FILE = 4
export const PAGE_IS_PRESENT = 8
export const PAGE_IS_SWAPPED = 16
export const PAGE_IS_PFNZERO = 32
export const PAGE_IS_HUGE = 64
export const PAGE_IS_SOFT_DIRTY = 128
/** Linux 6.15; a guard region also reads as swapped and written. */
export const PAGE_IS_GUARD = 256

/** Write-protects the returned pages again, in the same step. */
export const PM_SCAN_WP_MATCHING = 1
/** Fails with EPERM where a range is not registered for asynchronous write-protection, instead of skipping it. */
export const PM_SCAN_CHECK_WPASYNC = 2

/** Bits of the classic entries that `read` returns (proc_pid_pagemap(5)). */
export const PM_SOFT_DIRTY = 1n << 55n
export const PM_EXCLUSIVE = 1n << 56n
export const PM_UFFD_WP = 1n << 57n
/** Linux 6.15; such a page also has PM_SWAPPED. */
export const PM_GUARD_REGION = 1n << 58n
export const PM_FILE_OR_SHARED = 1n << 61n
export const PM_SWAPPED = 1n << 62n
export const PM_PRESENT = 1n << 63n

/**
 * A page matches if all categories of `mask` and at least one of `anyof` (if not 0) are set, after the categories
 * in `inverted` were inverted. Always ask for PRESENT|SWAPPED in `anyof` when looking for written pages:
 * untouched pages of a registered area count as written and would be populated with page tables.
 */
export interface ScanRequest {
  flags: number
  inverted: number
  mask: number
  anyof: number
  /** Categories to report per region. Fewer categories make longer regions. */
  returnMask: number
  /** 0: no limit. */
  maxPages: number
}

interface Binding {
  scan(
    fd: number,
    startPage: number,
    endPage: number,
    flags: number,
    inverted: number,
    mask: number,
    anyof: number,
    returnMask: number,
    maxPages: number,
    out: Float64Array,
  ): { regions: number; walkEndPage: number }
  read(fd: number, firstPage: number, nrPages: number, out: BigUint64Array): number
  clearSoftDirty(pid: number): void
}

const native = addon.pagemap as Binding

/**
 * PAGEMAP_SCAN (Linux 6.7; ENOTTY before). Fills `out` with triples [page, nrPages, categories] and returns their
 * number. The next scan starts at `walkEndPage`, which equals `endPage` when everything was walked.
 */
export function scan(
  pagemapFd: number,
  startPage: number,
  endPage: number,
  request: ScanRequest,
  out: Float64Array,
): { regions: number; walkEndPage: number } {
  const { flags, inverted, mask, anyof, returnMask, maxPages } = request
  return native.scan(pagemapFd, startPage, endPage, flags, inverted, mask, anyof, returnMask, maxPages, out)
}

/** Reads classic 8-byte entries. Returns their number, which is smaller only at the end of the address space. */
export function read(pagemapFd: number, firstPage: number, nrPages: number, out: BigUint64Array): number {
  return native.read(pagemapFd, firstPage, nrPages, out)
}

/** Starts a new soft-dirty period. Has no effect on kernels without CONFIG_MEM_SOFT_DIRTY. */
export function clearSoftDirty(pid: number): void {
  native.clearSoftDirty(pid)
}
