import { closeSync } from 'node:fs'
import { addressOf, isKernelError, type Logger, pageBytes, pageOf } from '@pageferry/base'
import { type InstallGate, type KeeperClient, Poller, uffd } from '@pageferry/kernel'
import { type LazyMap, type MapEvent, PageSet, trueOrder } from '@pageferry/pages'
import type { Pushed } from '../lanes/bulk-messages.js'
import { gateFor } from './gate.js'
import { EventJournal, type ForkFound, mapEvents } from './journal.js'
import { childNameOf, logNameOf, nameOf, uffdNameOf } from './keeper-names.js'

/** A thread waits for a page. `tid` is the thread's own view, which may be in a pid namespace below ours. */
export interface Fault {
  page: number
  tid: number
}

/** The part of the keeper that an address space needs. */
export type Holder = Pick<KeeperClient, 'hold' | 'fetch' | 'drop' | 'list'>

/** Pages that an address space waits for: the LazyMap, and changes that are not in it yet. */
export interface Waiting {
  lazy: LazyMap
  unsettled: MapEvent[]
}

/** Half of a journal's capacity. */
const maxUnsettled = 8192
/** Every address a userfaultfd accepts: from the lowest that may be mapped (vm.mmap_min_addr) to TASK_SIZE. */
const firstAddress = 0x1_0000n
const endAddress = 0x7fff_ffff_f000n
/** The last page below the guard page of user space: nothing is registered there. */
const probePage = 0x7_ffff_fffe

interface Parts extends Waiting {
  keeper: Holder
  name: string
  uffd: number
  journal: EventJournal
  /** Gate of the bulk lanes; null: only the worker itself installs there. */
  gate: InstallGate | null
  /** Number of leading `unsettled` changes that happened to the parent, before the fork. */
  nrInherited?: number
}

/**
 * One address space that still has lazy pages: the workload's own, or that of a child forked since the resume. It owns
 * the userfaultfd, the event journal, and all that both say about the memory.
 *
 * Everything here races with the threads of the workload, which change their memory map at any moment. The kernel
 * reports that in four ways. Each has one meaning:
 *
 *   EAGAIN   a change is under way. Nothing can be installed until its event was read and its thread has gone on.
 *            `install`, `zero`, `settle` and `dropLost` say so; the caller reads events and tries again.
 *   ENOENT   the page is in no registered area. In a quiet address space it was unmapped for good. Otherwise the event
 *            that says where it went may be still to come, so this counts as a change under way.
 *   EEXIST   the page is there already: it was installed before, or a child of a fork has its parent's.
 *   ESRCH    the address space is gone (exec, exit). Nothing is waited for any more.
 */
export class AddressSpace {
  readonly name: string
  readonly uffd: number
  readonly lazy: LazyMap
  readonly gate: InstallGate | null
  readonly #keeper: Holder
  #journal: EventJournal
  /**
   * Changes that were read and are not in the LazyMap yet. Their order is known only when the address space is quiet.
   */
  #unsettled: MapEvent[]
  #nrInherited: number
  /** Faults that wait until the changes are settled, by page. */
  #deferred = new Map<number, Fault>()
  /** Source pages that a bulk lane found outside every area. */
  readonly #lost = new PageSet()
  #waitsSince: number | null = null
  #poller: Poller | null = null

  private constructor(parts: Parts) {
    this.name = parts.name
    this.uffd = parts.uffd
    this.lazy = parts.lazy
    this.gate = parts.gate
    this.#keeper = parts.keeper
    this.#journal = parts.journal
    this.#unsettled = parts.unsettled
    this.#nrInherited = parts.nrInherited ?? 0
  }

  /** Creates the address space of the workload. The keeper gets the journal; from here on a successor can take over. */
  static create(keeper: Holder, asId: number, uffdFd: number, waiting: Waiting): AddressSpace {
    const name = nameOf(asId)
    const { lazy, unsettled } = waiting
    const journal = EventJournal.create(lazy, 0, unsettled)
    keeper.hold(logNameOf(name), journal.fd)
    return new AddressSpace({
      keeper,
      name,
      uffd: uffdFd,
      journal,
      ...waiting,
      gate: gateFor(lazy, unsettled),
    })
  }

  /**
   * Creates that of a child, whose userfaultfd the keeper has already. The journal goes to the keeper before the first
   * read.
   */
  static createChild(
    keeper: Holder,
    name: string,
    uffdFd: number,
    waiting: Waiting,
    log: Logger,
  ): AddressSpace {
    const journal = EventJournal.create(waiting.lazy, 0, waiting.unsettled)
    try {
      keeper.hold(logNameOf(name), journal.fd)
    } catch (error) {
      log.warn({ error: (error as Error).message, name }, 'the keeper does not hold the journal of a child')
      // Drop it: a successor without the journal would rebuild the child as it was born, with memory it has discarded
      // since.
      dropQuietly(keeper, uffdNameOf(name))
    }
    return new AddressSpace({ keeper, name, uffd: uffdFd, journal, ...waiting, gate: null })
  }

  /**
   * Takes over after kill -9 of the worker before. Call `settleForks` once the keeper has the userfaultfds of the
   * forks.
   * @param isRoot the workload's own, where the bulk lanes install
   */
  static reopen(keeper: Holder, name: string, isRoot: boolean): { space: AddressSpace; forks: ForkFound[] } {
    const fd = keeper.fetch(uffdNameOf(name))
    const { journal, lazy, unsettled, forks } = EventJournal.open(keeper.fetch(logNameOf(name)))
    const gate = isRoot ? gateFor(lazy, unsettled) : null
    return { space: new AddressSpace({ keeper, name, uffd: fd, journal, lazy, unsettled, gate }), forks }
  }

  /**
   * A fork created a child and its userfaultfd, which only this process's descriptor table has (shared with the
   * worker's heir). The keeper gets the descriptor before anything else happens.
   */
  fork(fd: number, log: Logger): AddressSpace {
    const name = childNameOf(this.name, this.#journal.nextFork())
    holdUserfaultfd(this.#keeper, name, fd, log)
    this.settleForks()
    const waiting = { lazy: this.lazy.fork(), unsettled: [...this.#unsettled] }
    const child = AddressSpace.createChild(this.#keeper, name, fd, waiting, log)
    child.#nrInherited = waiting.unsettled.length
    return child
  }

  /** Notes that the keeper has the userfaultfds of all forks that were read. */
  settleForks(): void {
    this.#journal.settleForks()
  }

  /** Calls back when there are events to read. */
  watch(onReadable: () => void): void {
    this.#poller = new Poller(this.uffd, (readable, error) => {
      if (error === undefined && readable) onReadable()
    })
  }

  unwatch(): void {
    this.#poller?.close()
    this.#poller = null
  }

  /**
   * Reads pending events into the journal. Changes wait for `settle`. Each fork is called back in its place between
   * them, because the child begins with its parent's state at that moment.
   * @returns the faults among the events
   */
  read(onFork: (fd: number) => void): Fault[] {
    if (this.#journal.isFull) {
      // No quiet moment in so many events. Enter them in the most likely order, before the journal has no room for
      // them.
      if (this.#unsettled.length > maxUnsettled) this.#enter(this.#likelyOrder(), () => {})
      this.#renewJournal()
    }
    const faults: Fault[] = []
    for (const event of this.#journal.read(this.uffd, this.gate ?? undefined)) {
      if (event.type === 'fork') onFork(event.fd)
      else if (event.type === 'pagefault') faults.push({ page: pageOf(event.address), tid: event.tid })
      else this.#note(event)
    }
    return faults
  }

  /**
   * Wakes the threads that wait for a page inside the change. They fault again at the page's new place, or find that it
   * is gone. The page will never be installed at the old place.
   */
  #note(event: uffd.UffdEvent): void {
    this.#unsettled.push(...mapEvents(event))
    if (event.type === 'remap') this.#wake(event.from, event.length)
    else if (event.type === 'remove' || event.type === 'unmap')
      this.#wake(event.start, event.end - event.start)
  }

  /** Changes that wait for `settle`. */
  get unsettled(): readonly MapEvent[] {
    return this.#unsettled
  }

  /**
   * Enters the changes into the LazyMap, in the order in which they happened. Returns false while a change is under
   * way: then nothing can be installed either, and events are still to come.
   *
   * Only REMAP events can arrive late. Without one, the order of reading is the order of the changes.
   * @param onChange called before each is entered
   */
  settle(onChange: (event: MapEvent) => void = () => {}): boolean {
    if (this.#unsettled.length === 0) return true
    let order: number[] | null = null
    if (this.#unsettled.some(({ type }) => type === 'remap')) {
      if (!this.isQuiet) return false
      order = this.#likelyOrder()
      // A change in between may have made an answer wrong. It would still be under way.
      if (!this.isQuiet) return false
    }
    this.#enter(order ?? this.#unsettled.keys(), onChange)
    if (order?.every((index, i) => index === i) ?? true) this.#journal.noteEntered()
    else this.#renewJournal()
    return true
  }

  /** Correct only if the address space was quiet all the while. */
  #likelyOrder(): number[] {
    const registrations = {
      before: (first: number, end: number) => this.lazy.firstRegistered(first, end),
      now: (page: number) => uffd.isRegistered(this.uffd, addressOf(page)),
    }
    return trueOrder(this.#unsettled, registrations, this.#nrInherited)
  }

  #enter(order: Iterable<number>, onChange: (event: MapEvent) => void): void {
    const unsettled = this.#unsettled
    this.#unsettled = []
    this.#nrInherited = 0
    for (const index of order) {
      onChange(unsettled[index])
      this.lazy.apply(unsettled[index])
    }
  }

  #renewJournal(): void {
    const next = EventJournal.create(this.lazy, this.#journal.forks, this.#unsettled)
    try {
      this.#keeper.hold(logNameOf(this.name), next.fd)
    } catch (error) {
      next.close()
      throw error
    }
    this.#journal.close()
    this.#journal = next
  }

  /** Asks the kernel with a page outside every area, so nothing is installed. */
  #probe(): uffd.Outcome['state'] {
    return uffd.zeroRuns(this.uffd, Float64Array.of(probePage, 1), 1, false).state
  }

  /** No change is under way: every event was read, and its thread has gone on. */
  get isQuiet(): boolean {
    return this.#probe() !== 'again'
  }

  /** The address space does not exist any more (exec, exit). A userfaultfd never reports that by itself. */
  get isGone(): boolean {
    return this.#probe() === 'gone'
  }

  /** Keeps one fault per page until a quiet moment. That is enough: a thread that was woken in between faults again. */
  defer(faults: Iterable<Fault>): void {
    for (const fault of faults) this.#deferred.set(fault.page, fault)
  }

  /** Returns the deferred faults and forgets them. */
  takeDeferred(): Fault[] {
    const faults = [...this.#deferred.values()]
    this.#deferred.clear()
    return faults
  }

  /** Forgets the deferred faults that were answered in another way. */
  dropDeferred(isAnswered: (fault: Fault) => boolean): void {
    for (const fault of this.#deferred.values()) if (isAnswered(fault)) this.#deferred.delete(fault.page)
  }

  /** When the wait for a moment without a change began, as performance.now() says; null: nothing waits. */
  get waitsSince(): number | null {
    return this.#waitsSince
  }

  noteWaiting(now: number): number {
    this.#waitsSince ??= now
    return this.#waitsSince
  }

  noteServed(): void {
    this.#waitsSince = null
  }

  /**
   * Installs those of `nr` source pages that are lazy here, at their present addresses. All changes must be settled.
   * @param data the pages, one behind the other; null: zeros
   * @returns how many were installed, and whether a change under way blocks the rest
   */
  install(source: number, nr: number, data: Uint8Array | null): { pages: number; isChanging: boolean } {
    let pages = 0
    for (;;) {
      const [next] = this.lazy.sourceRunsPendingFor(Float64Array.of(source, nr))
      if (next === undefined) return { pages, isChanging: false }
      const [current, from, length] = next
      const table = Float64Array.of(current, length)
      const bytes = data?.subarray((from - source) * pageBytes, (from - source + length) * pageBytes)
      const outcome =
        bytes === undefined
          ? uffd.zeroRuns(this.uffd, table, 1, true)
          : uffd.installRuns(this.uffd, -1, table, 1, bytes, 'keep', true)
      if (outcome.pages > 0) {
        this.lazy.installed(Float64Array.of(current, outcome.pages))
        pages += outcome.pages
      }
      if (outcome.state === 'again') return { pages, isChanging: true }
      if (outcome.state === 'gone') this.lazy.clear()
      else if (outcome.state === 'no-range') {
        if (!this.isQuiet) return { pages, isChanging: true }
        this.#giveUp(current + outcome.pages, 1)
      }
    }
  }

  /**
   * Installs zeros where nothing lazy is: stack growth, a grown mapping, a hole, or discarded memory. Returns false
   * while a change is under way: afterwards something else may lie there.
   */
  zero(page: number): boolean {
    const { state } = uffd.zeroRuns(this.uffd, Float64Array.of(page, 1), 1, true)
    // The page was unmapped meanwhile, or mapped anew without userfaultfd. The thread has to look again.
    if (state === 'no-range') this.#wake(addressOf(page), BigInt(pageBytes))
    return state !== 'again'
  }

  /**
   * A bulk lane has installed a batch through the gate. The LazyMap learns it after the fact, and only of pages that no
   * event has named since: another page may lie at such an address by now. A page outside every area may belong to a
   * REMAP that was not read yet: it stays lazy until `dropLost`.
   */
  notePushed({ runs, zeroRuns, lost }: Pushed): void {
    const missing = new Set(lost)
    const note = (first: number, nr: number) => this.lazy.installed(Float64Array.of(first, nr))
    const noteAllBut = (first: number, nr: number) => {
      for (let page = first; page < first + nr; page++) if (!missing.has(page)) note(page, 1)
    }
    for (const table of [runs, zeroRuns]) {
      for (let r = 0; r < table.length; r += 2) {
        this.gate?.forEachOpen(table[r], table[r + 1], missing.size === 0 ? note : noteAllBut)
      }
    }
    for (const page of lost) this.#lost.addRange(page, 1)
  }

  /**
   * Drops pages that a bulk lane found outside every area and that no later event has moved: threads can no longer
   * fault on them. Returns false while a change is under way.
   */
  dropLost(): boolean {
    if (this.#lost.isEmpty) return true
    if (!this.isQuiet) return false
    this.#lost.forEachRun((first, nr) => {
      this.gate?.forEachOpen(first, nr, (page, length) => this.#giveUp(page, length))
    })
    this.#lost.clear()
    return true
  }

  /** These pages are in no area any more. */
  #giveUp(first: number, nr: number): void {
    this.lazy.unmap(first, nr)
    this.#wake(addressOf(first), addressOf(nr))
  }

  #wake(address: bigint, length: bigint): void {
    if (length > 0n) uffd.wake(this.uffd, address, length)
  }

  /** Makes threads raise again the faults that a dead worker had read and not answered. */
  wakeAll(): void {
    this.#wake(firstAddress, endAddress - firstAddress)
  }

  /**
   * Ends user-space paging: the address space has no lazy page and becomes ordinary memory. Closing the last descriptor
   * unregisters it and wakes all waiting threads. Pages that are missing then read as zeros, which is right for them.
   */
  release(): void {
    this.unwatch()
    // First: the descriptor's number will become another file's.
    this.gate?.close()
    // In this order: adoptSpaces takes a journal without userfaultfd for a drained address space.
    dropQuietly(this.#keeper, uffdNameOf(this.name))
    dropQuietly(this.#keeper, logNameOf(this.name))
    closeSync(this.uffd)
    this.#journal.close()
  }
}

/**
 * The keeper may be full (a storm of forks) or gone. The child is served all the same, but cannot outlive this worker.
 */
export function holdUserfaultfd(keeper: Holder, name: string, fd: number, log: Logger): void {
  try {
    keeper.hold(uffdNameOf(name), fd)
  } catch (error) {
    log.warn({ error: (error as Error).message, name }, 'the keeper does not hold the userfaultfd of a child')
  }
}

/** Makes the keeper forget the name. The keeper may be gone together with the process. */
export function dropQuietly(keeper: Pick<Holder, 'drop'>, name: string): void {
  try {
    keeper.drop(name)
  } catch (error) {
    // The keeper never had it (a child of too many ancestors has too long a name), or is gone together with the
    // process.
    if (!isKernelError(error, 'ENOENT', 'ENAMETOOLONG', 'ECONNRESET', 'EPIPE', 'ENOTCONN')) throw error
  }
}
