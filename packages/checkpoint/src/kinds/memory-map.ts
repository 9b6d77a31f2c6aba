import { addressOf, PageferryError, pageBytes, pageOf } from '@pageferry/base'
import { type FileEntry, VMA_STATUS, type VmaEntry } from '@pageferry/images'
import { fds, uffd } from '@pageferry/kernel'
import {
  type Area,
  type AreaChange,
  type AreaKind,
  AreaMap,
  diffAreas,
  PageSet,
  requireAreaCount,
} from '@pageferry/pages'
import type { Problem } from '../capture-context.js'
import type { MapsLine, VmFlags } from '../proc/maps.js'
import { readMaps } from '../proc/maps.js'
import { isText } from '../proc/text.js'
import type { RemoteCall, SkeletonProcess } from '../remote/skeleton-process.js'
import { remoteError } from '../remote/workload-thread.js'
import { type FileTable, regularFilePath } from './file-table.js'
import { guardCalls } from './guard-regions.js'

/** The memory map: /proc/PID/maps on the source, CRIU's vma entries on the wire, mmap(2) in the skeleton. */

const PROT_READ = 1
const PROT_WRITE = 2
const PROT_EXEC = 4
const MAP_SHARED = 1
const MAP_PRIVATE = 2
const MAP_ANONYMOUS = 0x20
const MAP_GROWSDOWN = 0x100
const MAP_LOCKED = 0x2000
const MAP_NORESERVE = 0x4000
const MAP_FIXED_NOREPLACE = 0x10_0000
const MADV_WIPEONFORK = 18

/** VmFlags letters of advice that outlasts the call (proc_pid_smaps(5)), with their MADV_ numbers. */
const advice: readonly { flag: string; on: number; off: number | null }[] = [
  { flag: 'rr', on: 1, off: 0 },
  { flag: 'sr', on: 2, off: 0 },
  { flag: 'dc', on: 10, off: 11 },
  { flag: 'mg', on: 12, off: 13 },
  { flag: 'hg', on: 14, off: 15 },
  { flag: 'nh', on: 15, off: 14 },
  { flag: 'dd', on: 16, off: 17 },
  { flag: 'wf', on: MADV_WIPEONFORK, off: 19 },
]

/** Flags of areas that cannot be rebuilt, with what they mean. */
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

/** The areas of a process, without those of pageferry itself (`excluded`: first page and number of pages). */
export function dumpMemoryMap(
  pid: number,
  vmFlags: VmFlags,
  options: { excluded?: { page: number; nrPages: number }; tracked?: boolean } = {},
): MemoryMap {
  const areas: Area[] = []
  const problems: Problem[] = []
  for (const line of readMaps(pid)) {
    if (options.excluded !== undefined && line.start === options.excluded.page) continue
    // The kernel's own, at the same place in every process, outside the user address space.
    if (line.name === '[vsyscall]') continue
    const flags = vmFlags.get(line.start) ?? new Set<string>()
    const kind = kindOf(line, flags)
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
    if (typeof kind === 'string') areas.push(areaOf(line, kind, flags))
  }
  problems.push(...checkAliases(areas))
  return { map: new AreaMap(areas), problems }
}

/** Every area of shared memory is restored as an object of its own: two that show the same page would come apart. */
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

function kindOf(line: MapsLine, flags: Set<string>): AreaKind | { reason: string } {
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
  if (name === '/dev/zero (deleted)' || name.startsWith('[anon_shmem:')) return 'shared-anon'
  if (name.startsWith('/memfd:')) return { reason: 'memfd mappings are not moved yet' }
  if (name.startsWith('/SYSV')) return { reason: 'System V shared memory is not moved yet' }
  if (name.startsWith('/[aio]')) return { reason: 'it is the ring of an asynchronous I/O context (io_setup)' }
  if (name.startsWith('anon_inode:')) return { reason: 'a mapping of a kernel object is not moved' }
  if (name.endsWith(' (deleted)')) {
    return { reason: 'the mapped file is deleted: the destination cannot open it' }
  }
  if (!isText(name)) return { reason: 'the path of the mapped file is not valid UTF-8, which images require' }
  if (!name.startsWith('/')) return { reason: 'an area of an unknown kind' }
  if (name.startsWith('/dev/')) return { reason: 'device mappings are not moved' }
  return line.shared ? 'file-shared' : 'file-private'
}

function areaOf(line: MapsLine, kind: AreaKind, vmFlags: Set<string>): Area {
  const anonymous = kind === 'anon' || kind === 'heap' || kind === 'stack' || kind === 'shared-anon'
  const growsDown = vmFlags.has('gd')
  let flags = line.shared ? MAP_SHARED : MAP_PRIVATE
  if (anonymous) flags |= MAP_ANONYMOUS
  if (growsDown) flags |= MAP_GROWSDOWN
  if (vmFlags.has('lo')) flags |= MAP_LOCKED
  if (vmFlags.has('nr')) flags |= MAP_NORESERVE
  let madv = 0
  for (const { flag, on } of advice) if (vmFlags.has(flag)) madv |= 1 << on
  const file = kind === 'file-private' || kind === 'file-shared'
  const backed = file || kind === 'shared-anon'
  return {
    start: line.start,
    nrPages: line.nrPages,
    kind,
    prot: (line.read ? PROT_READ : 0) | (line.write ? PROT_WRITE : 0) | (line.exec ? PROT_EXEC : 0),
    flags,
    madv,
    growsDown,
    lazyEligible: isLazyEligible(kind, flags, madv),
    path: file ? line.name : undefined,
    // mw: it may be made writable later, so it was opened for writing.
    fileFlags: file ? (line.shared && (line.write || vmFlags.has('mw')) ? fds.O_RDWR : 0) : undefined,
    backingId: backed ? `${line.device}:${line.inode}` : undefined,
    offset: backed ? line.offset : 0n,
  }
}

/**
 * Anonymous, private, not locked: the areas that userfaultfd serves without changing what they are. And not wiped in a
 * child: there a missing page is a page of zeros, but its fault looks like one of a page that is still to come.
 */
function isLazyEligible(kind: AreaKind, flags: number, madv: number): boolean {
  const isPrivateAnon = kind === 'anon' || kind === 'heap' || kind === 'stack'
  return isPrivateAnon && (flags & MAP_LOCKED) === 0 && (madv & (1 << MADV_WIPEONFORK)) === 0
}

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

/** CRIU's vma entries; mapped files are entered into the file table. */
export function areasToVmas(map: AreaMap, files: FileTable): VmaEntry[] {
  return map.areas.map((area) => {
    const fdflags = area.fileFlags ?? 0
    let shmid = 0
    if (area.path !== undefined) shmid = files.mappedFile(area.path, area.backingId ?? area.path, fdflags)
    else if (area.backingId !== undefined) shmid = files.sharedMemory(area.backingId)
    return {
      start: addressOf(area.start),
      end: addressOf(area.start + area.nrPages),
      pgoff: area.offset,
      shmid: BigInt(shmid),
      prot: area.prot,
      flags: area.flags,
      status: statusOf[area.kind],
      fd: -1n,
      madv: BigInt(area.madv >>> 0),
      fdflags,
    }
  })
}

/** Pages of areas that mlock(2) and mlockall(2) count, as VmLck does. */
export function lockedPages(map: AreaMap): number {
  return map.areas.reduce((sum, { flags, nrPages }) => sum + ((flags & MAP_LOCKED) === 0 ? 0 : nrPages), 0)
}

/** The inverse of `areasToVmas`. The vma entries come from a peer: ranges are checked by AreaMap. */
export function areasFromVmas(vmas: VmaEntry[], files: FileEntry[]): AreaMap {
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
      // Two areas in ascending order on newer kernels: the data, then the clocks of paravirtual devices.
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
    if (file && path === undefined) throw new PageferryError('PROTOCOL', 'a memory area maps an unknown file')
    return {
      start: pageOf(vma.start),
      nrPages: pageOf(vma.end) - pageOf(vma.start),
      kind,
      prot: vma.prot,
      flags: vma.flags,
      madv: Number(vma.madv ?? 0n),
      growsDown: (vma.flags & MAP_GROWSDOWN) !== 0,
      lazyEligible: isLazyEligible(kind, vma.flags, Number(vma.madv ?? 0n)),
      path,
      fileFlags: file ? (vma.fdflags ?? 0) : undefined,
      backingId: file || kind === 'shared-anon' ? String(vma.shmid) : undefined,
      offset: vma.pgoff,
    }
  })
  return new AreaMap(areas)
}

const kernelKinds = new Set<AreaKind>(['vdso', 'vvar', 'vvar-vclock', 'vsyscall'])

/**
 * Brings a skeleton's map to the workload's. Every eligible area is registered with userfaultfd before
 * anything can be installed in it (a huge page could fill its neighbours), and unregistered before we change
 * it ourselves: otherwise our own munmap would wait for somebody to read its event.
 */
export class SkeletonMap {
  readonly #skeleton: SkeletonProcess
  readonly #uffd: number
  readonly #registered = new PageSet()
  #map = new AreaMap()
  #changes = 0

  constructor(skeleton: SkeletonProcess, uffdFd: number) {
    this.#skeleton = skeleton
    this.#uffd = uffdFd
  }

  get map(): AreaMap {
    return this.#map
  }

  /** Grows with every change of the map and with every discard: what the page tables said before is void. */
  get changes(): number {
    return this.#changes
  }

  /** Pages under userfaultfd. */
  get registered(): PageSet {
    return this.#registered
  }

  apply(target: AreaMap): void {
    this.#skeleton.avoid([...target.areas])
    const changes = diffAreas(this.#map, target)
    this.#changes += changes.length
    const of = <K extends AreaChange['op']>(op: K): Extract<AreaChange, { op: K }>[] =>
      changes.filter((change): change is Extract<AreaChange, { op: K }> => change.op === op)
    this.#unmap(of('unmap').filter((change) => !this.#isKernelArea(change.first)))
    this.#mapKernelAreas(of('map').filter(({ area }) => kernelKinds.has(area.kind)))
    this.#mapAreas(of('map').filter(({ area }) => !kernelKinds.has(area.kind)))
    this.#skeleton.all([
      ...of('protect').map(({ first, nr, prot }): RemoteCall => {
        return {
          name: 'mprotect',
          args: [addressOf(first), nr * pageBytes, installProt(target.find(first), prot)],
        }
      }),
      ...of('advise').flatMap(({ first, nr, from, to }) => adviseCalls(first, nr, from, to)),
    ])
    for (const { first, nr, on } of of('register')) {
      if (on) this.#register(first, nr)
      else this.#unregister(first, nr)
    }
    this.#map = target
  }

  /** Discards pages: afterwards they are missing, or read as the file. */
  discard(runs: PageSet): void {
    const calls: RemoteCall[] = []
    runs.forEachRun((first, nr) => {
      calls.push({ name: 'madvise', args: [addressOf(first), nr * pageBytes, madvDontneed] })
    })
    if (calls.length === 0) return
    this.#changes++
    const lifted = this.#registered.clone().intersect(wholeAreas(this.#map, runs))
    lifted.forEachRun((first, nr) => this.#unregister(first, nr))
    this.#skeleton.all(calls)
    lifted.forEachRun((first, nr) => this.#register(first, nr))
  }

  /**
   * When all pages are installed: takes away what was allowed for that, puts up the guards, and locks what the workload
   * had locked, in this order: no guard can be put into a locked area (madvise(2)).
   */
  finish(guards: PageSet): void {
    const { areas } = this.#map
    this.#skeleton.all(
      areas
        .filter((area) => installProt(area, area.prot) !== area.prot)
        .map((area) => ({
          name: 'mprotect',
          args: [addressOf(area.start), area.nrPages * pageBytes, area.prot],
        })),
    )
    this.#skeleton.all(guardCalls(guards))
    const locked = areas.filter((area) => (area.flags & MAP_LOCKED) !== 0)
    const results = this.#skeleton.batch(
      locked.map((area) => ({ name: 'mlock', args: [addressOf(area.start), area.nrPages * pageBytes] })),
    )
    for (const [i, result] of results.entries()) {
      // An area that cannot be read, or not everywhere, is locked all the same, but not filled (mlock(2): ENOMEM).
      const { prot, start, nrPages } = locked[i]
      const unreadable = prot === 0 || guards.countRange(start, nrPages) > 0
      if (result < 0n && !(result === -ENOMEM && unreadable)) {
        throw remoteError('mlock', Number(-result), this.#skeleton.pid)
      }
    }
  }

  #isKernelArea(page: number): boolean {
    const area = this.#map.find(page)
    return area !== undefined && kernelKinds.has(area.kind)
  }

  #register(first: number, nr: number): void {
    uffd.register(this.#uffd, addressOf(first), BigInt(nr * pageBytes), uffd.UFFDIO_REGISTER_MODE_MISSING)
    this.#registered.addRange(first, nr)
  }

  #unregister(first: number, nr: number): void {
    uffd.unregister(this.#uffd, addressOf(first), BigInt(nr * pageBytes))
    this.#registered.removeRange(first, nr)
  }

  #unmap(changes: { first: number; nr: number }[]): void {
    const doomed = new PageSet()
    for (const { first, nr } of changes) doomed.addRange(first, nr)
    this.#registered
      .clone()
      .intersect(doomed)
      .forEachRun((first, nr) => this.#unregister(first, nr))
    this.#skeleton.all(
      changes.map(({ first, nr }) => ({ name: 'munmap', args: [addressOf(first), nr * pageBytes] })),
    )
  }

  #mapAreas(changes: { first: number; nr: number; area: Area }[]): void {
    const descriptors = this.#openFiles(changes.map(({ area }) => area))
    this.#skeleton.all(
      changes.map(({ first, nr, area }): RemoteCall => {
        const flags = (area.flags & ~MAP_LOCKED) | MAP_FIXED_NOREPLACE
        const fd = area.path === undefined ? -1 : (descriptors.get(fileKey(area)) ?? -1)
        // Offsets of anonymous areas mean nothing to mmap; of shared memory they are kept by mapping it whole.
        const offset = area.path === undefined ? 0n : area.offset
        return {
          name: 'mmap',
          args: [addressOf(first), nr * pageBytes, installProt(area, area.prot), flags, fd, offset],
        }
      }),
    )
    for (const { first, nr, area } of changes) if (area.lazyEligible) this.#register(first, nr)
    this.#skeleton.all([
      ...changes.flatMap(({ first, nr, area }) => adviseCalls(first, nr, 0, area.madv)),
      ...[...descriptors.values()].map((fd): RemoteCall => ({ name: 'close', args: [fd] })),
    ])
  }

  #openFiles(areas: Area[]): Map<string, number> {
    const descriptors = new Map<string, number>()
    for (const area of areas) {
      if (area.path === undefined || descriptors.has(fileKey(area))) continue
      const path = this.#skeleton.write(Buffer.from(`${area.path}\0`))
      descriptors.set(fileKey(area), Number(this.#skeleton.call('open', path, area.fileFlags ?? 0, 0)))
    }
    return descriptors
  }

  /** vdso and its data are the kernel's: the skeleton's own are moved to where the workload had them. */
  #mapKernelAreas(changes: { area: Area }[]): void {
    const names: Partial<Record<AreaKind, string>> = {
      vdso: '[vdso]',
      vvar: '[vvar]',
      'vvar-vclock': '[vvar_vclock]',
    }
    const wanted = changes.flatMap(({ area }) => {
      const name = names[area.kind]
      return name === undefined ? [] : [{ name, start: area.start, nrPages: area.nrPages }]
    })
    if (wanted.length === 0) return
    const own = readMaps(this.#skeleton.pid)
    const moves = wanted.map(({ name, start, nrPages }) => {
      const from = own.find((line) => line.name === name)
      if (from === undefined || from.nrPages !== nrPages) {
        throw new PageferryError('REFUSED', `this kernel has no ${name} of ${nrPages} pages`)
      }
      return { from: from.start, to: start, nrPages }
    })
    if (moves.every(({ from, to }) => from === to)) return
    // Via a place that is neither: targets of one may overlap the present place of another.
    const total = moves.reduce((sum, { nrPages }) => sum + nrPages, 0)
    let via = this.#skeleton.findGap(total, wanted)
    const calls: RemoteCall[] = []
    const second: RemoteCall[] = []
    for (const { from, to, nrPages } of moves) {
      calls.push(mremapCall(from, via, nrPages))
      second.push(mremapCall(via, to, nrPages))
      via += nrPages
    }
    this.#skeleton.all([...calls, ...second])
  }
}

const madvDontneed = 4
const ENOMEM = 12n
const mremapMayMoveFixed = 3

function mremapCall(from: number, to: number, nrPages: number): RemoteCall {
  const length = nrPages * pageBytes
  return { name: 'mremap', args: [addressOf(from), length, length, mremapMayMoveFixed, addressOf(to)] }
}

/**
 * Protection while pages are installed. /proc/PID/mem writes private memory whatever its protection is, shared
 * memory only where the process itself could (FOLL_FORCE in mm/gup.c).
 */
function installProt(area: Area | undefined, prot: number): number {
  return area?.kind === 'shared-anon' ? prot | PROT_READ | PROT_WRITE : prot
}

function fileKey(area: Area): string {
  return `${area.fileFlags}:${area.path}`
}

function adviseCalls(first: number, nr: number, from: number, to: number): RemoteCall[] {
  const calls: RemoteCall[] = []
  const advise = (value: number): void => {
    calls.push({ name: 'madvise', args: [addressOf(first), nr * pageBytes, value] })
  }
  for (const { on, off } of advice) {
    const was = (from & (1 << on)) !== 0
    const is = (to & (1 << on)) !== 0
    if (was && !is && off !== null && (to & (1 << off)) === 0) advise(off)
  }
  for (const { on } of advice) {
    if ((to & (1 << on)) !== 0 && (from & (1 << on)) === 0) advise(on)
  }
  return calls
}

/** Pages of every area that contains at least one of the given pages. */
function wholeAreas(map: AreaMap, pages: PageSet): PageSet {
  const whole = new PageSet()
  for (const area of map.areas) {
    if (pages.countRange(area.start, area.nrPages) > 0) whole.addRange(area.start, area.nrPages)
  }
  return whole
}
