import { closeSync } from 'node:fs'
import { addressOf, isKernelError, type Logger } from '@pageferry/base'
import { type Heir, InstallGate, type KeeperClient, type Poller, uffd } from '@pageferry/kernel'
import { type LazyMap, type MapEvent, trueOrder } from '@pageferry/pages'
import { childOf, EventJournal, type ForkFound, mapEvents } from './journal.js'

export interface Fault {
  page: number
  tid: number
}

/** One address space that still has lazy pages: the workload's, and those of children that it forked. */
export interface Space {
  /** The keeper has the userfaultfd under this name and the journal under NAME.log; a child is NAME.1, NAME.2 … */
  readonly name: string
  readonly uffd: number
  readonly lazy: LazyMap
  /** Changes that were read and are not in the LazyMap yet: their order is known when the address space is quiet. */
  unsettled: MapEvent[]
  /** So many of these were its parent's when it was forked. */
  nrInherited: number
  /** Faults that wait for that, each page once. */
  faults: Fault[]
  /** Since when something waits for a moment without a change, as performance.now() says; null: nothing does. */
  waitsSince: number | null
  /** Of the bulk lanes; null: only the worker itself installs there. */
  readonly gate: InstallGate | null
  journal: EventJournal
  poller: Poller | null
}

/** What of the keeper is needed here. */
export type Holder = Pick<KeeperClient, 'hold' | 'fetch' | 'drop' | 'list'>

/** The table of a dead worker, as far as it is needed here. */
export type UserfaultfdOwner = Pick<Heir, 'takeUserfaultfd'>

const mainName = 'uffd'
/** Half of what a journal has room for. */
const maxUnsettled = 8192
const logOf = (name: string): string => `${name}.log`

/** Every address a userfaultfd accepts: from the lowest that may be mapped (vm.mmap_min_addr) to TASK_SIZE. */
const firstAddress = 0x1_0000n
const endAddress = 0x7fff_ffff_f000n
/** The last page below the guard page of user space: nothing is registered there. */
const probePage = 0x7_ffff_fffe

/** Before the freeze the keeper has the skeleton's userfaultfd; nobody takes it over until there is a journal. */
export function holdUserfaultfd(keeper: Pick<Holder, 'hold'>, uffdFd: number): void {
  keeper.hold(mainName, uffdFd)
}

/** The keeper gets the journal of what the restored process waits for: from here on it can be taken over. */
export function holdMain(keeper: Pick<Holder, 'hold'>, uffdFd: number, lazy: LazyMap): Space {
  const journal = EventJournal.create(lazy)
  keeper.hold(logOf(mainName), journal.fd)
  return newSpace(mainName, uffdFd, { lazy, unsettled: [] }, gateFor(lazy, []), journal)
}

function newSpace(
  name: string,
  uffdFd: number,
  known: Pick<Space, 'lazy' | 'unsettled'>,
  gate: InstallGate | null,
  journal: EventJournal,
): Space {
  return {
    name,
    uffd: uffdFd,
    ...known,
    nrInherited: 0,
    faults: [],
    waitsSince: null,
    gate,
    journal,
    poller: null,
  }
}

/** For pages that lie where they lay at the source, and that no event has named; the others are said to be there. */
function gateFor(all: LazyMap, unsettled: readonly MapEvent[]): InstallGate {
  const lazy = all.fork()
  for (const event of unsettled) {
    if (event.type === 'remap') {
      lazy.remove(event.from, event.nr)
      lazy.remove(event.to, event.nr)
    } else lazy.remove(event.first, event.nr)
  }
  const runs: number[] = []
  let nrMoved = 0
  lazy.forEachPending((page, source, nr) => {
    if (page === source) runs.push(page, nr)
    else nrMoved += nr
  })
  const gate = InstallGate.create(Float64Array.from(runs))
  if (nrMoved > 0 || unsettled.length > 0) gate.noteOthers()
  return gate
}

/**
 * A child came into being, and its userfaultfd with it, in this process's descriptor table alone. It goes to the keeper
 * before anything else happens; until then the table is the only place where it is, and the worker's heir has that, too.
 */
export function holdChild(keeper: Holder, parent: Space, fd: number, log: Logger): Space {
  const name = `${parent.name}.${parent.journal.nextFork()}`
  hold(keeper, name, fd, log)
  parent.journal.settleForks()
  const child = withJournal(keeper, name, fd, childOf(parent.lazy, parent.unsettled), log)
  child.nrInherited = child.unsettled.length
  return child
}

function hold(keeper: Holder, name: string, fd: number, log: Logger): void {
  try {
    keeper.hold(name, fd)
  } catch (error) {
    // Full (a storm of forks), or gone: the child is served all the same, it only cannot outlive this worker.
    log.warn({ error: (error as Error).message, name }, 'the keeper does not hold the userfaultfd of a child')
  }
}

/** A child without a journal is rebuilt from its parent's: until it has one, nothing was read from it. */
function withJournal(
  keeper: Holder,
  name: string,
  fd: number,
  { lazy, unsettled }: Pick<Space, 'lazy' | 'unsettled'>,
  log: Logger,
): Space {
  const journal = EventJournal.create(lazy, 0, unsettled)
  try {
    keeper.hold(logOf(name), journal.fd)
  } catch (error) {
    log.warn({ error: (error as Error).message, name }, 'the keeper does not hold the journal of a child')
    // Without it a successor would rebuild the child as it was born, and bring back what it has discarded since.
    dropQuietly(keeper, name)
  }
  return newSpace(name, fd, { lazy, unsettled }, null, journal)
}

/**
 * After kill -9 of the worker before: every address space that it served, with all that has happened to them.
 * Faults that it had read and not answered are raised again. None: it had drained them all.
 *
 * @param heir of that worker; null when it had none, or when it has been dealt with
 */
export function adoptSpaces(keeper: Holder, heir: UserfaultfdOwner | null, log: Logger): Space[] {
  const held = new Set(keeper.list())
  const spaces: Space[] = []
  const adopt = (name: string): void => {
    const fd = keeper.fetch(name)
    const { journal, lazy, unsettled, forks } = EventJournal.open(keeper.fetch(logOf(name)))
    const gate = name === mainName ? gateFor(lazy, unsettled) : null
    spaces.push(newSpace(name, fd, { lazy, unsettled }, gate, journal))
    for (const fork of forks) adoptChild(`${name}.${fork.ordinal}`, fork)
    journal.settleForks()
  }
  const adoptChild = (name: string, fork: ForkFound): void => {
    // With a journal it has its own turn. With a settled fork and neither it has ended, or has drained.
    if (held.has(logOf(name))) return
    if (held.has(name)) {
      spaces.push(withJournal(keeper, name, keeper.fetch(name), fork, log))
    } else if (!fork.isSettled) {
      const fd = heir?.takeUserfaultfd(fork.fd)
      if (fd === undefined) {
        log.error(
          { name, fd: fork.fd },
          'the userfaultfd of a child is lost: its missing pages read as zeros',
        )
        return
      }
      log.info({ name, fd: fork.fd }, 'the userfaultfd of a child was in the table of the dead worker only')
      hold(keeper, name, fd, log)
      spaces.push(withJournal(keeper, name, fd, fork, log))
    }
  }
  const names = [...held].filter((name) => name === mainName || name.startsWith(`${mainName}.`))
  // Parents before children: the workload's own address space is the first of the result.
  names.sort((a, b) => a.length - b.length)
  for (const name of names) if (!name.endsWith('.log') && held.has(logOf(name))) adopt(name)
  // Of one that was let go when its worker died: the userfaultfd is dropped before its journal.
  for (const name of names) if (name.endsWith('.log') && !held.has(name.slice(0, -4))) keeper.drop(name)
  if (spaces.length > 1) spaces[0].gate?.noteOthers()
  for (const space of spaces) uffd.wake(space.uffd, firstAddress, endAddress - firstAddress)
  return spaces
}

/** Those of one page wait together; a thread that was woken in between comes again. */
export function putOff(space: Space, faults: Iterable<Fault>): void {
  const byPage = new Map(space.faults.map((fault) => [fault.page, fault]))
  for (const fault of faults) byPage.set(fault.page, fault)
  space.faults = [...byPage.values()]
}

/** Reads what is pending into the journal, which is renewed when it is full. */
export function readSpace(keeper: Pick<Holder, 'hold'>, space: Space): uffd.UffdEvent[] {
  if (space.journal.isFull) {
    // Never quiet in so many events: the best guess, before there is no room for them.
    if (space.unsettled.length > maxUnsettled) enter(space, likelyOrder(space), () => {})
    renewJournal(keeper, space)
  }
  return space.journal.read(space.uffd, space.gate ?? undefined)
}

function renewJournal(keeper: Pick<Holder, 'hold'>, space: Space): void {
  const next = EventJournal.create(space.lazy, space.journal.forks, space.unsettled)
  try {
    keeper.hold(logOf(space.name), next.fd)
  } catch (error) {
    next.close()
    throw error
  }
  space.journal.close()
  space.journal = next
}

/**
 * Notes an event other than a fault or a fork, for `settle`. Threads that wait for a page there are let go: they fault again
 * where the page is now, or find that it is gone. The page itself will never be installed at the old place.
 */
export function changeSpace(space: Space, event: uffd.UffdEvent): void {
  space.unsettled.push(...mapEvents(event))
  if (event.type === 'remap') wakeRange(space, event.from, event.length)
  else if (event.type === 'remove' || event.type === 'unmap')
    wakeRange(space, event.start, event.end - event.start)
}

/**
 * Enters the changes into the LazyMap, in the order in which they happened. False: some thread has made a change whose
 * event it has yet to queue, or has not gone on after it. Then nothing can be installed either, and what was read is not
 * all that there is to know. Without a move, nothing that is still to come can belong in front of what was read.
 * @param onChange called before each is entered
 */
export function settle(
  keeper: Pick<Holder, 'hold'>,
  space: Space,
  onChange: (event: MapEvent) => void = () => {},
): boolean {
  const { unsettled } = space
  if (unsettled.length === 0) return true
  let order: number[] | null = null
  if (unsettled.some(({ type }) => type === 'remap')) {
    if (!isQuiet(space)) return false
    order = likelyOrder(space)
    // A change in between may have made an answer wrong: it would still be under way.
    if (!isQuiet(space)) return false
  }
  enter(space, order ?? unsettled.keys(), onChange)
  if (order?.every((index, i) => index === i) ?? true) space.journal.noteEntered()
  else renewJournal(keeper, space)
  return true
}

/** True if the address space was quiet all the while. */
function likelyOrder({ unsettled, nrInherited, lazy, uffd: fd }: Space): number[] {
  const registrations = {
    before: (first: number, end: number) => lazy.firstRegistered(first, end),
    now: (page: number) => uffd.isRegistered(fd, addressOf(page)),
  }
  return trueOrder(unsettled, registrations, nrInherited)
}

function enter(space: Space, order: Iterable<number>, onChange: (event: MapEvent) => void): void {
  const { unsettled, lazy } = space
  space.unsettled = []
  space.nrInherited = 0
  for (const index of order) {
    onChange(unsettled[index])
    lazy.apply(unsettled[index])
  }
}

/** Installs nothing. */
function probe(space: Space): uffd.Outcome {
  return uffd.zeroRuns(space.uffd, Float64Array.of(probePage, 1), 1, false)
}

/** No change is under way: every event has been read, and nothing that it names can be the next one's. */
export function isQuiet(space: Space): boolean {
  return probe(space).state !== 'again'
}

export function wakeRange(space: Space, address: bigint, length: bigint): void {
  if (length > 0n) uffd.wake(space.uffd, address, length)
}

/** True when the address space does not exist any more (exec, exit); a userfaultfd never says so by itself. */
export function isGone(space: Space): boolean {
  return probe(space).state === 'gone'
}

/**
 * Nothing is lazy there any more: it becomes ordinary memory. Closing the last descriptor unregisters it and wakes
 * whoever waits; what is not there by then reads as zeros, which is right for every page that is left.
 */
export function releaseSpace(keeper: Holder, space: Space): void {
  space.poller?.close()
  space.poller = null
  // The descriptor's number will be another file's.
  space.gate?.close()
  // In this order: a journal without userfaultfd is no address space, see adoptSpaces.
  dropQuietly(keeper, space.name)
  dropQuietly(keeper, logOf(space.name))
  closeSync(space.uffd)
  space.journal.close()
}

/** Nothing is held under that name from now on; the keeper may be gone together with the process. */
export function dropQuietly(keeper: Pick<Holder, 'drop'>, name: string): void {
  try {
    keeper.drop(name)
  } catch (error) {
    // It never had it, or it is gone together with the process.
    if (!isKernelError(error, 'ENOENT', 'ECONNRESET', 'EPIPE', 'ENOTCONN')) throw error
  }
}
