import { addressOf, hex, PageferryError, pageBytes } from '@pageferry/base'
import { memory } from '@pageferry/kernel'
import type { MapsLine } from '../proc/maps.js'
import { codeBytes, isInjectionCode } from './exit-sequence.js'

/** Data area for arguments and results of injected calls: enough for 1,000 signal actions or iovecs. */
export const scratchPages = 16

/** Lowest page of any gap that is used. Null-pointer guards and small non-PIE programs lie below. */
const lowestGapPage = 0x10_0000
/** Gaps keep this many pages to both neighbours, so that the kernel merges nothing with the scratch area. */
const gapMarginPages = 16
/** User space ends here on x86_64 with four-level paging (TASK_SIZE_MAX). */
const highestPage = 0x7_ffff_ffff

/** First page of a gap of `nrPages` between the given areas. */
export function findGap(maps: { start: number; nrPages: number }[], nrPages: number): number {
  const sorted = [...maps].sort((a, b) => a.start - b.start)
  let candidate = lowestGapPage
  for (const area of sorted) {
    if (area.start >= candidate + nrPages + gapMarginPages) break
    candidate = Math.max(candidate, area.start + area.nrPages + gapMarginPages)
  }
  if (candidate + nrPages > highestPage) {
    throw new PageferryError('REFUSED', `the address space has no gap of ${nrPages} pages`)
  }
  return candidate
}

/**
 * The place of the injection code: the zero padding behind the vdso, which is never executed. Writing there copies one
 * page of the vdso for this process and needs no system call of the workload. So its own code is never changed, not
 * even for a moment.
 */
export function findCodeSite(maps: MapsLine[], memFd: number): bigint {
  const vdso = maps.find((area) => area.name === '[vdso]')
  if (vdso === undefined) {
    throw new PageferryError('REFUSED', 'the process has no vdso, where system calls could be injected')
  }
  const end = addressOf(vdso.start + vdso.nrPages)
  const site = end - BigInt(codeBytes)
  const bytes = new Uint8Array(codeBytes)
  if (memory.pread(memFd, site, bytes) !== codeBytes) {
    throw new PageferryError(
      'REFUSED',
      `the vdso at ${hex(end - BigInt(vdso.nrPages * pageBytes))} cannot be read`,
    )
  }
  if (bytes.some((byte) => byte !== 0) && !isInjectionCode(bytes)) {
    throw new PageferryError('REFUSED', 'the vdso has no unused room at its end')
  }
  return site
}
