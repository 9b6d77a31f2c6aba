import { memory } from '@pageferry/kernel'
import type { AreaKind, AreaMap } from '@pageferry/pages'

const { MAP_LOCKED, MADV_WIPEONFORK } = memory

/**
 * Anonymous, private, not locked: the areas that userfaultfd serves without changing what they are. And not wiped in a
 * child: there a missing page is a page of zeros, but its fault looks like one of a page that is still to come.
 */
export function isLazyEligible(kind: AreaKind, flags: number, madv: number): boolean {
  const isPrivateAnon = kind === 'anon' || kind === 'heap' || kind === 'stack'
  return isPrivateAnon && (flags & MAP_LOCKED) === 0 && (madv & (1 << MADV_WIPEONFORK)) === 0
}

/** Pages of areas that mlock(2) and mlockall(2) count, as VmLck does. */
export function lockedPages(map: AreaMap): number {
  return map.areas.reduce((sum, { flags, nrPages }) => sum + ((flags & MAP_LOCKED) === 0 ? 0 : nrPages), 0)
}
