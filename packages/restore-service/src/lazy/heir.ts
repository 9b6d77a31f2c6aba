import type { Logger } from '@pageferry/base'
import { Heir, type KeeperClient } from '@pageferry/kernel'
import { adoptSpaces, dropQuietly, type Space } from './address-space.js'

/**
 * The heirs of restore workers. Each worker has one before it reads the first event of a userfaultfd; the keeper knows
 * it, so that the worker's successor finds it:
 *
 *   worker reads a fork ─ kill -9 ─▶ its heir has the child's userfaultfd ─▶ successor: takes it, holds it with the
 *                                                                            keeper, ends the heir, appoints its own
 *
 * Nothing is read between the end of one heir and the beginning of the next. An heir that nobody comes for ends with
 * the keeper.
 */
const heirName = 'heir'

/** Known to the keeper before it is armed: an heir that nobody finds would keep userfaultfds open for ever. */
export function appointHeir(keeper: KeeperClient, heir: Heir): void {
  keeper.hold(heirName, heir.pidfd)
  heir.arm(keeper.socketFd)
}

/**
 * After kill -9 of the worker before: what it served, and what it had not even given to the keeper. Its heir has nothing
 * left to do then; a new one must be there before anything is read.
 */
export function inheritSpaces(keeper: KeeperClient, log: Logger): Space[] {
  const heir = keeper.list().includes(heirName) ? new Heir(keeper.fetch(heirName)) : null
  const spaces = adoptSpaces(keeper, heir, log)
  heir?.end()
  return spaces
}

/** When no page is lazy any more: there will be no events. */
export function dismissHeir(keeper: KeeperClient, heir: Heir): void {
  heir.end()
  dropQuietly(keeper, heirName)
}
