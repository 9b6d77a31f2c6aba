import { addressOf, PageferryError, pageOf } from '@pageferry/base'
import { type FileEntry, VMA_STATUS, type VmaEntry } from '@pageferry/images'
import { memory } from '@pageferry/kernel'
import { type Area, type AreaKind, AreaMap, requireAreaCount } from '@pageferry/pages'
import { type FileTable, regularFilePath } from '../file-table.js'
import { isLazyEligible } from './areas.js'

/** Converts between our memory map and CRIU's vma entries. */

const statusOf: Record<AreaKind, number> = {
  anon: VMA_STATUS.REGULAR | VMA_STATUS.ANON_PRIVATE,
  heap: VMA_STATUS.REGULAR | VMA_STATUS.ANON_PRIVATE | VMA_STATUS.HEAP,
  stack: VMA_STATUS.REGULAR | VMA_STATUS.ANON_PRIVATE | VMA_STATUS.STACK,
  'file-private': VMA_STATUS.REGULAR | VMA_STATUS.FILE_PRIVATE,
  'file-shared': VMA_STATUS.REGULAR | VMA_STATUS.FILE_SHARED,
  'shared-anon': VMA_STATUS.REGULAR | VMA_STATUS.ANON_SHARED,
  vdso: VMA_STATUS.REGULAR | VMA_STATUS.ANON_PRIVATE | VMA_STATUS.VDSO,
  vvar: VMA_STATUS.REGULAR | VMA_STATUS.ANON_PRIVATE | VMA_STATUS.VVAR,
  'vvar-vclock': VMA_STATUS.REGULAR | VMA_STATUS.ANON_PRIVATE | VMA_STATUS.VVAR,
  vsyscall: VMA_STATUS.VSYSCALL,
}

/** Makes CRIU's vma entries, and enters mapped files into the file table. */
export function areasToVmas(map: AreaMap, files: FileTable): VmaEntry[] {
  return map.areas.map((area) => {
    const fdflags = area.fileFlags ?? 0
    let shmid = 0
    if (area.path !== undefined) {
      shmid = files.mappedFile(area.path, area.backingId ?? area.path, fdflags, area.ghost)
    } else if (area.backingId !== undefined) shmid = files.sharedMemory(area.backingId)
    return {
      start: addressOf(area.start),
      end: addressOf(area.start + area.nrPages),
      pgoff: area.offset,
      shmid: BigInt(shmid),
      prot: area.prot,
      flags: area.flags,
      status: statusOf[area.kind] | (area.lockOnFault === true ? VMA_STATUS.LOCK_ON_FAULT : 0),
      fd: -1n,
      madv: BigInt(area.madv >>> 0),
      fdflags,
      anonName: area.name,
    }
  })
}

/**
 * The inverse of `areasToVmas`. The vma entries come from a peer; AreaMap checks the ranges.
 *
 * @param ghostIds of the files that have no name any more
 */
export function areasFromVmas(
  vmas: VmaEntry[],
  files: FileEntry[],
  ghostIds: ReadonlyMap<number, number> = new Map(),
): AreaMap {
  requireAreaCount(vmas.length)
  const paths = new Map(files.map((file) => [file.id, regularFilePath(file)]))
  let vvarSeen = false
  const real = vmas.filter(({ status }) => status !== VMA_STATUS.GUARD)
  const areas = real.map((vma): Area => {
    const status = vma.status
    let kind: AreaKind
    if (status & VMA_STATUS.VSYSCALL) kind = 'vsyscall'
    else if (status & VMA_STATUS.VDSO) kind = 'vdso'
    else if (status & VMA_STATUS.VVAR) {
      // Newer kernels have two areas in ascending order: the data, then the clocks of paravirtual devices.
      kind = vvarSeen ? 'vvar-vclock' : 'vvar'
      vvarSeen = true
    } else if (status & VMA_STATUS.STACK) kind = 'stack'
    else if (status & VMA_STATUS.HEAP) kind = 'heap'
    else if (status & VMA_STATUS.FILE_PRIVATE) kind = 'file-private'
    else if (status & VMA_STATUS.FILE_SHARED) kind = 'file-shared'
    else if (status & VMA_STATUS.ANON_SHARED) kind = 'shared-anon'
    else if (status & VMA_STATUS.ANON_PRIVATE) kind = 'anon'
    else throw new PageferryError('PROTOCOL', `a memory area has the unknown status ${status}`)
    const file = kind === 'file-private' || kind === 'file-shared'
    const path = file ? paths.get(Number(vma.shmid)) : undefined
    const ghost = file ? ghostIds.get(Number(vma.shmid)) : undefined
    if (file && path === undefined) throw new PageferryError('PROTOCOL', 'a memory area maps an unknown file')
    return {
      start: pageOf(vma.start),
      nrPages: pageOf(vma.end) - pageOf(vma.start),
      kind,
      prot: vma.prot,
      flags: vma.flags,
      ...((status & VMA_STATUS.LOCK_ON_FAULT) !== 0 && { lockOnFault: true }),
      madv: Number(vma.madv ?? 0n),
      growsDown: (vma.flags & memory.MAP_GROWSDOWN) !== 0,
      lazyEligible: isLazyEligible(kind, vma.flags, Number(vma.madv ?? 0n)),
      path,
      name: vma.anonName,
      ghost: ghost === undefined ? undefined : String(ghost),
      fileFlags: file ? (vma.fdflags ?? 0) : undefined,
      backingId: file || kind === 'shared-anon' ? String(vma.shmid) : undefined,
      offset: vma.pgoff,
    }
  })
  return new AreaMap(areas)
}
