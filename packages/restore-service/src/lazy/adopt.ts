import type { Logger } from '@pageferry/base'
import type { Heir } from '@pageferry/kernel'
import { AddressSpace, dropQuietly, type Holder, holdUserfaultfd } from './address-space.js'
import type { ForkFound } from './journal.js'
import { childNameOf, heldSpaces, logNameOf, nameOf, uffdNameOf } from './keeper-names.js'

/** The part of a dead worker's heir that an adoption needs. */
export type UserfaultfdOwner = Pick<Heir, 'takeUserfaultfd'>

/** The address spaces that take pages of one of the source: the workload's own first, then children forked from it. */
export type Family = AddressSpace[]

/**
 * Gives the skeleton's userfaultfd to the keeper before the freeze. A successor ignores it until there is a journal.
 */
export function holdSkeleton(keeper: Pick<Holder, 'hold'>, asId: number, uffdFd: number): void {
  keeper.hold(uffdNameOf(nameOf(asId)), uffdFd)
}

/**
 * Takes over after kill -9 of the worker before: every address space that it served, by as_id, with all changes so far.
 * Faults that it had read and not answered are raised again. The map is empty when it had drained them all.
 *
 * @param heir of that worker; null when it had none, or when it has been dealt with
 */
export function adoptSpaces(keeper: Holder, heir: UserfaultfdOwner | null, log: Logger): Map<number, Family> {
  const held = heldSpaces(keeper.list())
  const byName = new Map(held.map((each) => [each.name, each]))
  const families = new Map<number, Family>()
  for (const { name, asId, isRoot, hasUffd, hasLog } of held) {
    if (!hasUffd) {
      // The worker died while it released this one: the userfaultfd is dropped before its journal.
      dropQuietly(keeper, logNameOf(name))
      continue
    }
    // A space without a journal is a child that its parent's journal lists, or a skeleton.
    if (!hasLog) continue
    const family = families.get(asId) ?? []
    families.set(asId, family)
    const { space, forks } = AddressSpace.reopen(keeper, name, isRoot)
    family.push(space)
    for (const fork of forks) {
      const child = childNameOf(name, fork.ordinal)
      // A child with a journal is adopted in its own turn.
      if (byName.get(child)?.hasLog !== true) {
        const adopted = adoptChild(keeper, child, byName.get(child)?.hasUffd === true, fork, heir, log)
        if (adopted !== null) family.push(adopted)
      }
    }
    space.settleForks()
  }
  for (const family of families.values()) {
    if (family.length > 1) family[0].gate?.noteOthers()
    for (const space of family) space.wakeAll()
  }
  return families
}

/** Rebuilds a child that had no journal yet, from its parent's. null: there is nothing to serve. */
function adoptChild(
  keeper: Holder,
  name: string,
  isHeld: boolean,
  fork: ForkFound,
  heir: UserfaultfdOwner | null,
  log: Logger,
): AddressSpace | null {
  if (isHeld) return AddressSpace.createChild(keeper, name, keeper.fetch(uffdNameOf(name)), fork, log)
  // The child has ended, or has drained.
  if (fork.isSettled) return null
  const fd = heir?.takeUserfaultfd(fork.fd)
  if (fd === undefined) {
    log.error({ name, fd: fork.fd }, 'the userfaultfd of a child is lost: its missing pages read as zeros')
    return null
  }
  log.info({ name, fd: fork.fd }, 'the userfaultfd of a child was in the table of the dead worker only')
  holdUserfaultfd(keeper, name, fd, log)
  return AddressSpace.createChild(keeper, name, fd, fork, log)
}
