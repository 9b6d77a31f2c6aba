import type { Logger } from '@pageferry/base'
import { Heir, type KeeperClient } from '@pageferry/kernel'
import { dropQuietly } from './address-space.js'
import { adoptSpaces, type Family } from './adopt.js'

/**
 * The heirs of restore workers (native/heir.c of the kernel package). Each worker has one before it reads the first
 * event of a userfaultfd. The keeper holds its pidfd, so that the worker's successor finds it:
 *
 *   worker reads a fork ─ kill -9 ─▶ its heir has the child's userfaultfd ─▶ successor: takes it, holds it with the
 *                                                                            keeper, ends the heir, appoints its own
 *
 * Nothing is read between the end of one heir and the beginning of the next. An heir without a successor ends with the
 * keeper.
 */
const heirName = 'heir'

/**
 * Gives the heir to the keeper before arming it: an heir that no successor finds would keep userfaultfds open for ever.
 */
export function appointHeir(keeper: KeeperClient, heir: Heir): void {
  keeper.hold(heirName, heir.pidfd)
  heir.arm(keeper.socketFd)
}

/**
 * Takes over after kill -9 of the worker before: the address spaces that it served, and children that it had not given
 * to the keeper yet. Its heir is then done. A new heir must exist before an event is read.
 */
export function inheritSpaces(keeper: KeeperClient, log: Logger): Map<number, Family> {
  const heir = keeper.list().includes(heirName) ? new Heir(keeper.fetch(heirName)) : null
  const families = adoptSpaces(keeper, heir, log)
  heir?.end()
  return families
}

/** Ends the heir when no page is lazy any more: there will be no events. */
export function dismissHeir(keeper: KeeperClient, heir: Heir): void {
  heir.end()
  dropQuietly(keeper, heirName)
}
