import { memory } from '@pageferry/kernel'
import type { AreaKind, AreaMap } from '@pageferry/pages'
import type { MapsLine } from '../../proc/maps.js'

const { MAP_LOCKED, MADV_WIPEONFORK } = memory

/**
 * Whether userfaultfd can serve an area without changing it: it is anonymous, private and not locked. Nor may it be
 * wiped in a child: there a missing page is zeros, but its fault looks like that of a page that is still to come.
 */
export function isLazyEligible(kind: AreaKind, flags: number, madv: number): boolean {
  const isPrivateAnon = kind === 'anon' || kind === 'heap' || kind === 'stack'
  return isPrivateAnon && (flags & MAP_LOCKED) === 0 && (madv & (1 << MADV_WIPEONFORK)) === 0
}

/** Shared anonymous memory is a file in a file system of the kernel's own (mm/shmem.c, shmem_zero_setup). */
export function isSharedAnonymous({ name }: Pick<MapsLine, 'name'>): boolean {
  return name === '/dev/zero (deleted)' || name.startsWith('[anon_shmem:')
}

/** Pages of locked areas, as mlock(2), mlockall(2) and VmLck count them. */
export function lockedPages(map: AreaMap): number {
  return map.areas.reduce((sum, { flags, nrPages }) => sum + ((flags & MAP_LOCKED) === 0 ? 0 : nrPages), 0)
}
