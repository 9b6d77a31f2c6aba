import { totalmem } from 'node:os'
import { addressOf, pageBytes } from '@pageferry/base'
import { memory, uffd } from '@pageferry/kernel'
import { type Area, type AreaChange, AreaMap, diffAreas, PageSet } from '@pageferry/pages'
import type { RemoteCall, SkeletonProcess } from '../../remote/skeleton-process.js'
import { remoteError } from '../../remote/workload-thread.js'
import type { GhostFiles } from '../ghosts/ghost-files.js'
import { guardCalls } from '../guard-regions.js'
import { adviseCalls } from './advice.js'
import { isKernelArea, moveKernelAreas } from './kernel-areas.js'

const ENOMEM = 12n

/** linux/mman.h */
const MLOCK_ONFAULT = 1

/**
 * Changes a skeleton's map to that of a round. Every eligible area is registered with userfaultfd before anything is
 * installed in it: a huge page could fill its neighbours. It is unregistered before we change it ourselves. Otherwise
 * our own munmap(2) would wait until its event was read, and we are the reader.
 */
export class SkeletonMap {
  readonly #skeleton: SkeletonProcess
  readonly #uffd: number
  readonly #ghosts: GhostFiles
  readonly #registered = new PageSet()
  #map = new AreaMap()
  #changes = 0

  constructor(skeleton: SkeletonProcess, uffdFd: number, ghosts: GhostFiles) {
    this.#skeleton = skeleton
    this.#ghosts = ghosts
    this.#uffd = uffdFd
  }

  get map(): AreaMap {
    return this.#map
  }

  /**
   * Grows with every change of the map and with every discard: earlier readings of the page tables are invalid then.
   */
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
    this.#unmap(of('unmap').filter(({ first }) => !isKernelArea(this.#map.find(first))))
    moveKernelAreas(
      this.#skeleton,
      of('map').map(({ area }) => area),
    )
    this.#mapAreas(of('map').filter(({ area }) => !isKernelArea(area)))
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
      calls.push({ name: 'madvise', args: [addressOf(first), nr * pageBytes, memory.MADV_DONTNEED] })
    })
    if (calls.length === 0) return
    this.#changes++
    const lifted = this.#registered.clone().intersect(wholeAreas(this.#map, runs))
    lifted.forEachRun((first, nr) => this.#unregister(first, nr))
    this.#skeleton.all(calls)
    lifted.forEachRun((first, nr) => this.#register(first, nr))
  }

  /**
   * Runs when all pages are installed. It restores the protections, installs the guards, then locks the areas that were
   * locked. Guards come first: they cannot be put into a locked area (madvise(2)).
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
    const locked = areas.filter((area) => (area.flags & memory.MAP_LOCKED) !== 0)
    const results = this.#skeleton.batch(
      locked.map(({ start, nrPages, lockOnFault }) => ({
        name: 'mlock2',
        args: [addressOf(start), nrPages * pageBytes, lockOnFault === true ? MLOCK_ONFAULT : 0],
      })),
    )
    for (const [i, result] of results.entries()) {
      // An area that is unreadable, even in parts, is locked all the same, but not filled (mlock(2): ENOMEM).
      const { prot, start, nrPages } = locked[i]
      const unreadable = prot === 0 || guards.countRange(start, nrPages) > 0
      if (result < 0n && !(result === -ENOMEM && unreadable)) {
        throw remoteError('mlock2', Number(-result), this.#skeleton.pid)
      }
    }
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
      changes.flatMap(inPieces).map(({ first, nr, area }): RemoteCall => {
        const flags = (area.flags & ~memory.MAP_LOCKED) | memory.MAP_FIXED_NOREPLACE
        const fd = area.path === undefined ? -1 : (descriptors.get(fileKey(area)) ?? -1)
        // mmap ignores offsets of anonymous areas. Shared memory keeps them because it is mapped whole.
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
      descriptors.set(fileKey(area), this.#openFile(area.path, area))
    }
    return descriptors
  }

  #openFile(name: string, { fileFlags = 0, ghost }: Area): number {
    if (ghost !== undefined) return this.#skeleton.lend(this.#ghosts.open(Number(ghost), fileFlags))
    const path = this.#skeleton.write(Buffer.from(`${name}\0`))
    return Number(this.#skeleton.call('open', path, fileFlags, 0))
  }
}

/**
 * The kernel refuses one mmap(2) of more memory than the machine has (__vm_enough_memory in mm/util.c), but it merges
 * neighbours to larger areas, here as on the source. Shared memory and files are mapped whole: each call would make
 * another object, and files count for nothing.
 */
function inPieces(change: { first: number; nr: number; area: Area }): (typeof change)[] {
  const { first, nr, area } = change
  const isPrivate = area.path === undefined && area.kind !== 'shared-anon'
  const piecePages = Math.floor(totalmem() / 2 / pageBytes)
  if (!isPrivate || nr <= piecePages) return [change]
  return Array.from({ length: Math.ceil(nr / piecePages) }, (_, i) => ({
    area,
    first: first + i * piecePages,
    nr: Math.min(piecePages, nr - i * piecePages),
  }))
}

/**
 * Protection while pages are installed. /proc/PID/mem writes private memory whatever its protection is. It writes
 * shared memory only where the process itself could (FOLL_FORCE in mm/gup.c).
 */
function installProt(area: Area | undefined, prot: number): number {
  return area?.kind === 'shared-anon' ? prot | memory.PROT_READ | memory.PROT_WRITE : prot
}

function fileKey(area: Area): string {
  return `${area.fileFlags}:${area.ghost ?? area.path}`
}

/** Pages of every area that contains at least one of the given pages. */
function wholeAreas(map: AreaMap, pages: PageSet): PageSet {
  const whole = new PageSet()
  for (const area of map.areas) {
    if (pages.countRange(area.start, area.nrPages) > 0) whole.addRange(area.start, area.nrPages)
  }
  return whole
}
