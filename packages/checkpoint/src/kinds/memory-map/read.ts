import { statSync } from 'node:fs'
import { addressOf, pageBytes } from '@pageferry/base'
import { fds, memory } from '@pageferry/kernel'
import { type Area, type AreaKind, AreaMap } from '@pageferry/pages'
import type { Problem } from '../../problems.js'
import { type MapsLine, readMaps, type VmFlags } from '../../proc/maps.js'
import { isText } from '../../proc/text.js'
import {
  ghostsOfMaps,
  isDeleted,
  isSillyRenamed,
  lastName,
  linkedElsewhere,
  sillyRenamed,
} from '../ghosts/find.js'
import { adviceOf } from './advice.js'
import { isLazyEligible, isSharedAnonymous } from './areas.js'

/** The memory map of a process, from /proc/PID/maps and the flags of /proc/PID/smaps. */

/** Flags of areas that cannot be rebuilt, with their meaning. */
const unmovable: readonly [flag: string, reason: string][] = [
  ['ht', 'huge pages of hugetlbfs are not moved'],
  ['pf', 'it maps device memory (page frames without struct page)'],
  ['io', 'it maps memory-mapped I/O'],
  ['ss', 'it is a shadow stack'],
  ['pk', 'it has a protection key (pkey_mprotect)'],
  ['sl', 'it is sealed (mseal)'],
  ['dp', 'it is droppable (MAP_DROPPABLE)'],
  ['um', 'the program uses userfaultfd itself'],
  ['uw', 'write protection by userfaultfd is active: the program uses it itself, or another migration runs'],
  ['ui', 'the program uses userfaultfd itself'],
]

export interface MemoryMap {
  map: AreaMap
  problems: Problem[]
}

/** The areas of a process, without pageferry's own (`excluded`: first page and number of pages). */
export function dumpMemoryMap(
  pid: number,
  vmFlags: VmFlags,
  options: { excluded?: { page: number; nrPages: number }; tracked?: boolean } = {},
): MemoryMap {
  const areas: Area[] = []
  const problems: Problem[] = []
  const ghostOf = ghostsOfMaps(pid)
  for (const line of readMaps(pid)) {
    if (options.excluded !== undefined && line.start === options.excluded.page) continue
    // The kernel's own area, at the same place in every process, outside the user address space.
    if (line.name === '[vsyscall]') continue
    const flags = vmFlags.get(line.start) ?? new Set<string>()
    const ghost = isDeleted(line.name) ? ghostOf(line) : null
    const kind = kindOf(line, flags, ghost !== null)
    const where = `memory area ${line.start.toString(16)}000 ${line.name || '(anonymous)'}`
    if (typeof kind !== 'string') problems.push({ what: where, reason: kind.reason })
    for (const [flag, reason] of unmovable) {
      if (flags.has(flag) && !(options.tracked === true && flag === 'uw')) {
        if (flag === 'io' && line.name.startsWith('[v')) continue
        if (flag === 'pf' && line.name.startsWith('[v')) continue
        if (flag === 'sl' && line.name.startsWith('[v')) continue
        problems.push({ what: where, reason })
      }
    }
    if (typeof kind === 'string') areas.push(areaOf(line, kind, flags, ghost))
  }
  problems.push(...checkAliases(areas), ...checkObjects(pid, areas))
  return { map: new AreaMap(areas), problems }
}

/**
 * Refuses aliases. Every area of shared memory is restored as its own object, so two areas of the same page would come
 * apart.
 */
function checkAliases(areas: Area[]): Problem[] {
  const problems: Problem[] = []
  const shared = areas
    .filter((area) => area.kind === 'shared-anon')
    .sort((a, b) =>
      a.backingId === b.backingId
        ? Number(a.offset - b.offset)
        : `${a.backingId}` < `${b.backingId}`
          ? -1
          : 1,
    )
  for (const [i, area] of shared.entries()) {
    const before = shared[i - 1]
    if (before?.backingId !== area.backingId) continue
    if (before.offset + BigInt(before.nrPages * pageBytes) > area.offset) {
      problems.push({
        what: `memory area ${area.start.toString(16)}000`,
        reason: 'the same shared memory is mapped twice',
      })
    }
  }
  return problems
}

/**
 * Refuses shared memory of which a part is in no area, for example after it was shrunk with mremap(2). That part has contents,
 * too, and comes back when the area grows again.
 */
function checkObjects(pid: number, areas: Area[]): Problem[] {
  const mappedBytes = new Map<string, number>()
  const shared = areas.filter(({ kind }) => kind === 'shared-anon')
  for (const { backingId = '', nrPages } of shared) {
    mappedBytes.set(backingId, (mappedBytes.get(backingId) ?? 0) + nrPages * pageBytes)
  }
  return shared.flatMap((area) => {
    const [from, to] = [area.start, area.start + area.nrPages].map((page) => addressOf(page).toString(16))
    const stat = statSync(`/proc/${pid}/map_files/${from}-${to}`, { throwIfNoEntry: false })
    if (stat === undefined || stat.size <= (mappedBytes.get(area.backingId ?? '') ?? 0)) return []
    return [
      {
        what: `memory area ${area.start.toString(16)}000`,
        reason: 'only a part of this shared memory is mapped',
      },
    ]
  })
}

function kindOf(line: MapsLine, flags: Set<string>, isGhost: boolean): AreaKind | { reason: string } {
  const { name } = line
  switch (name) {
    case '[heap]':
      return 'heap'
    case '[stack]':
      return 'stack'
    case '[vdso]':
      return 'vdso'
    case '[vvar]':
      return 'vvar'
    case '[vvar_vclock]':
      return 'vvar-vclock'
    case '[uprobes]':
      return { reason: 'a uprobe is active in the process; remove it (perf, bpftrace, systemtap)' }
  }
  if (name === '' || name.startsWith('[anon:') || name.startsWith('[stack:')) {
    if (line.shared) return { reason: 'shared memory of an unknown kind' }
    return flags.has('gd') ? 'stack' : 'anon'
  }
  if (isSharedAnonymous(line)) return 'shared-anon'
  if (name.startsWith('/memfd:')) return { reason: 'memfd mappings are not moved yet' }
  if (name === '/secretmem (deleted)') return { reason: 'secret memory (memfd_secret) cannot be read' }
  if (name.startsWith('/SYSV')) return { reason: 'System V shared memory is not moved yet' }
  if (name.startsWith('/[aio]')) return { reason: 'it is the ring of an asynchronous I/O context (io_setup)' }
  if (name.startsWith('anon_inode:')) return { reason: 'a mapping of a kernel object is not moved' }
  if (isSillyRenamed(name)) return { reason: sillyRenamed }
  if (isDeleted(name) && !isGhost) {
    return { reason: linkedElsewhere }
  }
  if (!isText(name)) return { reason: 'the path of the mapped file is not valid UTF-8, which images require' }
  if (!name.startsWith('/')) return { reason: 'an area of an unknown kind' }
  if (name.startsWith('/dev/')) return { reason: 'device mappings are not moved' }
  return line.shared ? 'file-shared' : 'file-private'
}

function areaOf(line: MapsLine, kind: AreaKind, vmFlags: Set<string>, ghost: string | null): Area {
  const anonymous = kind === 'anon' || kind === 'heap' || kind === 'stack' || kind === 'shared-anon'
  const growsDown = vmFlags.has('gd')
  let flags = line.shared ? memory.MAP_SHARED : memory.MAP_PRIVATE
  if (anonymous) flags |= memory.MAP_ANONYMOUS
  if (growsDown) flags |= memory.MAP_GROWSDOWN
  if (vmFlags.has('lo')) flags |= memory.MAP_LOCKED
  if (vmFlags.has('nr')) flags |= memory.MAP_NORESERVE
  const madv = adviceOf(vmFlags)
  const file = kind === 'file-private' || kind === 'file-shared'
  const backed = file || kind === 'shared-anon'
  return {
    start: line.start,
    nrPages: line.nrPages,
    kind,
    prot:
      (line.read ? memory.PROT_READ : 0) |
      (line.write ? memory.PROT_WRITE : 0) |
      (line.exec ? memory.PROT_EXEC : 0),
    flags,
    ...(vmFlags.has('lf') && { lockOnFault: true }),
    madv,
    growsDown,
    lazyEligible: isLazyEligible(kind, flags, madv),
    path: file ? (ghost === null ? line.name : lastName(line.name)) : undefined,
    ghost: file && ghost !== null ? ghost : undefined,
    // mw: it may be made writable later, so it was opened for writing.
    fileFlags: file ? (line.shared && (line.write || vmFlags.has('mw')) ? fds.O_RDWR : 0) : undefined,
    name: anonymous ? programsName(line.name) : undefined,
    // A file that loses its name is another one for the destination, which has to open it differently.
    backingId: backed ? `${ghost === null ? '' : 'ghost '}${line.device}:${line.inode}` : undefined,
    offset: backed ? line.offset : 0n,
  }
}

/** The kernel allows only printable characters, but no bracket, in such a name. */
function programsName(name: string): string | undefined {
  return /^\[anon(?:_shmem)?:(.*)\]$/.exec(name)?.[1]
}
