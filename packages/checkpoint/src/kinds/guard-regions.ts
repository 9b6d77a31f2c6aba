import { addressOf, PageferryError, pageBytes, pageOf } from '@pageferry/base'
import { VMA_STATUS, type VmaEntry } from '@pageferry/images'
import { memory } from '@pageferry/kernel'
import { type AreaMap, PageSet } from '@pageferry/pages'
import type { RemoteCall } from '../remote/skeleton-process.js'

/**
 * Pages whose touch is a SIGSEGV although their area allows it (madvise(2), MADV_GUARD_INSTALL, Linux 6.13). The scan
 * of the page tables finds them. The images have them as in CRIU (criu/mem.c): vma entries with a status of their own,
 * behind those of the areas they lie in.
 */

export function guardsToVmas(guards: PageSet): VmaEntry[] {
  const none = { pgoff: 0n, shmid: 0n, prot: 0, flags: 0, fd: -1n }
  const vmas: VmaEntry[] = []
  guards.forEachRun((first, nr) => {
    vmas.push({ start: addressOf(first), end: addressOf(first + nr), status: VMA_STATUS.GUARD, ...none })
  })
  return vmas
}

/** @throws PROTOCOL for a guard outside the areas, which could also make the set too large */
export function guardsFromVmas(vmas: VmaEntry[], map: AreaMap): PageSet {
  const guards = new PageSet()
  for (const { start, end, status } of vmas) {
    if (status !== VMA_STATUS.GUARD) continue
    const past = pageOf(end)
    let page = pageOf(start)
    if (page >= past) throw new PageferryError('PROTOCOL', 'a guard region is empty')
    while (page < past) {
      const area = map.find(page)
      if (area === undefined) throw new PageferryError('PROTOCOL', 'a guard region lies in no memory area')
      const areaEnd = Math.min(past, area.start + area.nrPages)
      guards.addRange(page, areaEnd - page)
      page = areaEnd
    }
  }
  return guards
}

export function guardCalls(guards: PageSet): RemoteCall[] {
  const calls: RemoteCall[] = []
  guards.forEachRun((first, nr) => {
    calls.push({ name: 'madvise', args: [addressOf(first), nr * pageBytes, memory.MADV_GUARD_INSTALL] })
  })
  return calls
}
