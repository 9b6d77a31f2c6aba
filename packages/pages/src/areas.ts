import { PageferryError, pageBytes } from '@pageferry/base'
import { PageSet } from './page-set.js'

/**
 * The memory map of a workload, and the operations that change one map into another.
 *
 * The destination holds a skeleton with the map of the last round. Before it applies the next round it changes that map
 * to the new one. The plan is page-exact and keeps every mapping that is the same in both, because an installed page
 * lives only as long as its mapping. **The destination loses every page that the plan unmaps.** The source computes the
 * same plan from the same two maps and forgets that it sent those pages (SourcePages.noteAreas). Both sides use this
 * one function, which keeps them in step.
 *
 * The kernel merges, splits and relabels areas at will (an anonymous area next to the brk area becomes [heap]). A plan
 * must not depend on that. So it compares by page and by the identity of the mapping, not by area.
 */
export type AreaKind =
  | 'anon'
  | 'heap'
  | 'stack'
  | 'file-private'
  | 'file-shared'
  | 'shared-anon'
  | 'vdso'
  | 'vvar'
  | 'vvar-vclock'
  | 'vsyscall'

export interface Area {
  /** Page number. */
  readonly start: number
  readonly nrPages: number
  readonly kind: AreaKind
  /** PROT_READ | PROT_WRITE | PROT_EXEC. */
  readonly prot: number
  /** MAP_* bits as in CRIU's VmaEntry. MAP_LOCKED may change in place; every other bit is identity. */
  readonly flags: number
  /** Of a locked area: pages are locked when they are touched, and not filled before (mlock2(2), MLOCK_ONFAULT). */
  readonly lockOnFault?: boolean
  /** Bits 1 << MADV_*: lasting advice (huge pages, fork, dump); changes in place. */
  readonly madv: number
  readonly growsDown: boolean
  /** Its missing pages can be served by userfaultfd: private anonymous, not locked, not hugetlb. */
  readonly lazyEligible: boolean
  readonly path?: string
  /** Names a file that has no name any more: on the source "device:inode", on the destination its id in the images. */
  readonly ghost?: string
  /** Identity of the mapped file, since the path may be wrong (renamed, deleted, memfd): "device:inode". */
  readonly backingId?: string
  /** How a mapped file must be opened: O_RDWR (2) if a shared mapping is or may become writable, else 0. */
  readonly fileFlags?: number
  /** Of anonymous memory, given by the program (prctl(2), PR_SET_VMA_ANON_NAME). Not identity. */
  readonly name?: string
  /** Bytes into the file or shared object; 0n for a mapping without one. */
  readonly offset: bigint
}

export type AreaChange =
  | { readonly op: 'unmap'; readonly first: number; readonly nr: number }
  /** `area` is exactly the piece to map, its offset already moved. */
  | { readonly op: 'map'; readonly first: number; readonly nr: number; readonly area: Area }
  | { readonly op: 'protect'; readonly first: number; readonly nr: number; readonly prot: number }
  | {
      readonly op: 'advise'
      readonly first: number
      readonly nr: number
      readonly from: number
      readonly to: number
    }
  /** A mapping that stays became eligible for userfaultfd, or ceased to be. Mapped pieces contain that themselves. */
  | { readonly op: 'register'; readonly first: number; readonly nr: number; readonly on: boolean }

const MAP_LOCKED = 0x2000

/** Private anonymous memory under any of the kernel's names: a missing page reads as zeros. */
export function isPrivateAnon(area: Area): boolean {
  return area.kind === 'anon' || area.kind === 'heap' || area.kind === 'stack'
}

/** Whether the contents travel with the process. Shared files, devices and the kernel's own areas do not. */
export function carriesPages(area: Area): boolean {
  return isPrivateAnon(area) || area.kind === 'file-private' || area.kind === 'shared-anon'
}

/**
 * Whether the area takes part in pre-dump rounds. Shared anonymous memory never counts as unchanged. It may be written
 * through another mapping or write(). A page-table entry may be dropped together with its dirty bit. After a punched
 * hole a mere read maps zeros that look clean. So it travels once, inside the freeze.
 */
export function travelsInRounds(area: Area): boolean {
  return isPrivateAnon(area) || area.kind === 'file-private'
}

/**
 * Whether the areas and their objects are the same. Advice and locks are not compared, since maps does not show them.
 */
export function sameAreas(a: AreaMap, b: AreaMap): boolean {
  if (a.areas.length !== b.areas.length) return false
  return a.areas.every((area, i) => {
    const other = b.areas[i]
    return (
      area.start === other.start &&
      area.nrPages === other.nrPages &&
      area.prot === other.prot &&
      area.kind === other.kind &&
      area.backingId === other.backingId &&
      area.offset === other.offset
    )
  })
}

/** The part of an area inside first .. first+nr-1, with its offset adjusted. */
export function sliceArea(area: Area, first: number, nr: number): Area {
  const skipped = first - area.start
  const offset = isPrivateAnon(area) ? area.offset : area.offset + BigInt(skipped) * BigInt(pageBytes)
  return { ...area, start: first, nrPages: nr, offset }
}

/**
 * Largest number of areas in one address space: the default vm.max_map_count of Fedora, Arch and Ubuntu since 2023.
 * Linux itself has 65,530. A map comes from a peer and costs some 200 bytes per area.
 */
export const maxAreas = 1_048_576

/** @throws REFUSED for a map with more areas */
export function requireAreaCount(nrAreas: number): void {
  if (nrAreas <= maxAreas) return
  throw new PageferryError('REFUSED', `the memory map has ${nrAreas} areas, at most ${maxAreas} can be moved`)
}

/** The areas of an address space: ascending, not overlapping, not empty. Immutable. */
export class AreaMap {
  readonly areas: readonly Area[]

  /** Throws RangeError when areas overlap or are empty. */
  constructor(areas: Iterable<Area> = []) {
    const sorted = [...areas].sort((a, b) => a.start - b.start)
    let end = 0
    for (const area of sorted) {
      if (area.nrPages <= 0 || area.start < end)
        throw new RangeError(`areas overlap or are empty at page 0x${area.start.toString(16)}`)
      end = area.start + area.nrPages
    }
    this.areas = sorted
  }

  /** The area that contains the page. */
  find(page: number): Area | undefined {
    let low = 0
    let high = this.areas.length
    while (low < high) {
      const middle = (low + high) >>> 1
      const area = this.areas[middle]
      if (page < area.start) high = middle
      else if (page >= area.start + area.nrPages) low = middle + 1
      else return area
    }
    return undefined
  }

  get nrPages(): number {
    let nr = 0
    for (const area of this.areas) nr += area.nrPages
    return nr
  }

  /** All pages of the areas that match. */
  pages(wanted: (area: Area) => boolean = () => true): PageSet {
    const set = new PageSet()
    for (const area of this.areas) if (wanted(area)) set.addRange(area.start, area.nrPages)
    return set
  }
}

/**
 * The ordered operations that change `from` into `to`: all unmaps, then all maps, then changes in place. Equal pieces
 * appear in no operation. A piece whose identity changed is unmapped and mapped anew. MAP_LOCKED is no operation: the
 * destination locks after the last round, from the final map.
 */
export function diffAreas(from: AreaMap, to: AreaMap): AreaChange[] {
  const unmaps = new Collected<{ op: 'unmap' }>()
  const maps: AreaChange[] = []
  const protects = new Collected<{ op: 'protect'; prot: number }>()
  const advices = new Collected<{ op: 'advise'; from: number; to: number }>()
  const registers = new Collected<{ op: 'register'; on: boolean }>()

  for (const { first, nr, a, b } of overlay(from.areas, to.areas)) {
    const kept = a !== undefined && b !== undefined && isSameMapping(a, b)
    if (kept) {
      if (a.prot !== b.prot) protects.add(first, nr, { op: 'protect', prot: b.prot })
      if (a.madv !== b.madv) advices.add(first, nr, { op: 'advise', from: a.madv, to: b.madv })
      if (a.lazyEligible !== b.lazyEligible) registers.add(first, nr, { op: 'register', on: b.lazyEligible })
      continue
    }
    if (a !== undefined) unmaps.add(first, nr, { op: 'unmap' })
    if (b === undefined) continue
    const last = maps.at(-1)
    // Pieces of one new area that lie side by side, with different old areas behind, are one mmap.
    if (last?.op === 'map' && last.first + last.nr === first && last.first >= b.start) {
      maps[maps.length - 1] = mapOf(b, last.first, last.nr + nr)
    } else maps.push(mapOf(b, first, nr))
  }
  return [...unmaps.list, ...maps, ...protects.list, ...advices.list, ...registers.list]
}

function mapOf(area: Area, first: number, nr: number): AreaChange {
  return { op: 'map', first, nr, area: sliceArea(area, first, nr) }
}

/** Whether the mappings are the same at the overlap: installed pages may stay then. */
function isSameMapping(a: Area, b: Area): boolean {
  if (a.growsDown !== b.growsDown || (a.flags & ~MAP_LOCKED) !== (b.flags & ~MAP_LOCKED)) return false
  if (isPrivateAnon(a) && isPrivateAnon(b)) return true
  if (a.kind !== b.kind || a.fileFlags !== b.fileFlags) return false
  const shift = BigInt(b.start - a.start) * BigInt(pageBytes)
  if (a.offset + shift !== b.offset) return false
  // A renamed file is still the same mapping. The name decides only without an identity.
  if (a.backingId !== undefined && b.backingId !== undefined) return a.backingId === b.backingId
  return a.path === b.path
}

/** Cuts two sorted lists of areas at each other's borders and walks the pieces in ascending order. */
function* overlay(
  from: readonly Area[],
  to: readonly Area[],
): Generator<{ first: number; nr: number; a: Area | undefined; b: Area | undefined }> {
  let i = 0
  let j = 0
  let at = 0
  while (i < from.length || j < to.length) {
    const oldArea = from[i] as Area | undefined
    const newArea = to[j] as Area | undefined
    const a = oldArea !== undefined && oldArea.start <= at ? oldArea : undefined
    const b = newArea !== undefined && newArea.start <= at ? newArea : undefined
    const borders = [oldArea, newArea].map((area) =>
      area === undefined
        ? Number.POSITIVE_INFINITY
        : area.start <= at
          ? area.start + area.nrPages
          : area.start,
    )
    const end = Math.min(...borders)
    if (a !== undefined || b !== undefined) yield { first: at, nr: end - at, a, b }
    at = end
    if (oldArea !== undefined && oldArea.start + oldArea.nrPages <= at) i++
    if (newArea !== undefined && newArea.start + newArea.nrPages <= at) j++
  }
}

/** Ranges with a payload. Neighbours with an equal payload are joined. */
class Collected<T extends object> {
  readonly list: Array<T & { first: number; nr: number }> = []

  add(first: number, nr: number, what: T): void {
    const last = this.list.at(-1)
    const same = last !== undefined && (Object.keys(what) as Array<keyof T>).every((k) => last[k] === what[k])
    if (same && last.first + last.nr === first) last.nr += nr
    else this.list.push({ ...what, first, nr })
  }
}
