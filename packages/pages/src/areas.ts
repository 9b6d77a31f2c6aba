import { PageferryError, pageBytes } from '@pageferry/base'
import { PageSet } from './page-set.js'

/**
 * The memory map of a workload, and how one map becomes another.
 *
 * The destination holds a skeleton with the map of the last round; before it applies the next round it is
 * brought to the new map. The plan is page-exact and keeps whatever is the same mapping in both, because a
 * page that was installed there lives only as long as its mapping. **What the plan unmaps, the destination
 * has lost**, so the source computes the same plan from the same two maps and forgets that it sent those
 * pages (SourcePages.noteAreas). That both sides use this one function is what keeps them in step.
 *
 * The kernel merges, splits and relabels areas at will (an anonymous area next to the brk area becomes
 * [heap]); a plan must not notice. So comparison is by page and by what the mapping *is*, not by area.
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
  /** MAP_* bits as CRIU's VmaEntry has them. MAP_LOCKED may change in place, every other bit is identity. */
  readonly flags: number
  /** Bits 1 << MADV_*: advice that lasts (huge pages, fork, dump); changes in place. */
  readonly madv: number
  readonly growsDown: boolean
  /** Its missing pages can be served by userfaultfd: private anonymous, not locked, not hugetlb. */
  readonly lazyEligible: boolean
  readonly path?: string
  /** What is mapped, where the path may lie (renamed, deleted, memfd): "device:inode". */
  readonly backingId?: string
  /** How a mapped file must be opened: O_RDWR (2) where a shared mapping is or may become writable, else 0. */
  readonly fileFlags?: number
  /** Bytes into the file or shared object; 0n where nothing is behind the mapping. */
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
  /** A mapping that stays became eligible for userfaultfd (mapped pieces say it themselves), or ceased to be. */
  | { readonly op: 'register'; readonly first: number; readonly nr: number; readonly on: boolean }

const MAP_LOCKED = 0x2000

/** Private anonymous memory, whatever the kernel calls it today: a page that is not there reads as zeros. */
export function isPrivateAnon(area: Area): boolean {
  return area.kind === 'anon' || area.kind === 'heap' || area.kind === 'stack'
}

/** Whether the contents travel with the process. Shared files, devices and the kernel's own areas stay. */
export function carriesPages(area: Area): boolean {
  return isPrivateAnon(area) || area.kind === 'file-private' || area.kind === 'shared-anon'
}

/**
 * Whether pre-dump rounds are worth their bytes. Shared anonymous memory can never be called unchanged: it may
 * be written through another mapping or write(), a page-table entry may be dropped together with its dirt, and
 * after a punched hole a mere read maps zeros that look clean. It travels once, inside the freeze.
 */
export function travelsInRounds(area: Area): boolean {
  return isPrivateAnon(area) || area.kind === 'file-private'
}

/** The same areas of the same objects, as maps shows them: advice and locks, which it does not, are not compared. */
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

/** The part of an area inside first .. first+nr-1, with its offset moved along. */
export function sliceArea(area: Area, first: number, nr: number): Area {
  const skipped = first - area.start
  const offset = isPrivateAnon(area) ? area.offset : area.offset + BigInt(skipped) * BigInt(pageBytes)
  return { ...area, start: first, nrPages: nr, offset }
}

/**
 * Areas of one address space. What vm.max_map_count is on Fedora, Arch and Ubuntu since 2023; Linux itself has 65,530.
 * A map comes from a peer and costs some 200 bytes an area.
 */
export const maxAreas = 1_048_576

/** @throws REFUSED for a map of more areas than are moved */
export function requireAreaCount(nrAreas: number): void {
  if (nrAreas <= maxAreas) return
  throw new PageferryError('REFUSED', `the memory map has ${nrAreas} areas, at most ${maxAreas} can be moved`)
}

/** An address space's areas: ascending, not overlapping, not empty. Immutable. */
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

  /** All pages of the areas that are wanted. */
  pages(wanted: (area: Area) => boolean = () => true): PageSet {
    const set = new PageSet()
    for (const area of this.areas) if (wanted(area)) set.addRange(area.start, area.nrPages)
    return set
  }
}

/**
 * The ordered operations that bring `from` to `to`: all unmaps, then all maps, then changes in place. Equal
 * pieces appear in no operation. A piece whose identity changed is unmapped and mapped anew. MAP_LOCKED is no operation:
 * the destination locks after the last round, from the final map.
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
    // Pieces of one new area that lie side by side (behind it different old ones) are one mmap.
    if (last?.op === 'map' && last.first + last.nr === first && last.first >= b.start) {
      maps[maps.length - 1] = mapOf(b, last.first, last.nr + nr)
    } else maps.push(mapOf(b, first, nr))
  }
  return [...unmaps.list, ...maps, ...protects.list, ...advices.list, ...registers.list]
}

function mapOf(area: Area, first: number, nr: number): AreaChange {
  return { op: 'map', first, nr, area: sliceArea(area, first, nr) }
}

/** The same mapping at the overlap: its pages mean the same, so installed ones may stay. */
function isSameMapping(a: Area, b: Area): boolean {
  if (a.growsDown !== b.growsDown || (a.flags & ~MAP_LOCKED) !== (b.flags & ~MAP_LOCKED)) return false
  if (isPrivateAnon(a) && isPrivateAnon(b)) return true
  if (a.kind !== b.kind || a.fileFlags !== b.fileFlags) return false
  const shift = BigInt(b.start - a.start) * BigInt(pageBytes)
  if (a.offset + shift !== b.offset) return false
  // A renamed file is still the same mapping; only without an identity does the name decide.
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

/** Ranges with a payload; neighbours with an equal payload become one. */
class Collected<T extends object> {
  readonly list: Array<T & { first: number; nr: number }> = []

  add(first: number, nr: number, what: T): void {
    const last = this.list.at(-1)
    const same = last !== undefined && (Object.keys(what) as Array<keyof T>).every((k) => last[k] === what[k])
    if (same && last.first + last.nr === first) last.nr += nr
    else this.list.push({ ...what, first, nr })
  }
}
