import { closeSync, fstatSync, ftruncateSync } from 'node:fs'
import { PageferryError, pageOf } from '@pageferry/base'
import { fds, type InstallGate, uffd } from '@pageferry/kernel'
import { LazyMap } from '@pageferry/memory'

/**
 * What one address space still waits for, so that it survives kill -9 of the worker that serves it.
 *
 *     addon's head | own words | log of events | snapshot: [page, source page, number of pages] as doubles
 *
 * A memfd that the keeper holds: the snapshot is the LazyMap at the journal's birth, the log holds every event
 * since. Events are read by the kernel directly into it (native/uffd.c), so there is no instruction between which a
 * kill would lose one. Which pages have been installed since is not noted: a page that is there answers EEXIST.
 *
 * The log is bounded. When it is full the owner makes a new journal out of the LazyMap as it is and gives it to the
 * keeper under the same name, which replaces the old one at once.
 */

/** 512 KiB of log; a program that discards memory as fast as it can fills it in a second. */
const logCapacity = 16_384
/** One read may bring as many events as this (MAX_EVENTS of the addon). */
const eventsPerRead = 64

/** Own words, 32 bits each: forks before this journal; forks whose userfaultfd is not in the reader's table alone. */
const { from: forksAt } = uffd.journalUserBytes
const settledAt = forksAt + 4
const snapshotAt = uffd.journalHeadBytes + logCapacity * uffd.journalEventBytes
const tripleBytes = 24

/** A fork that the log tells of: the child's address space as it began. `fd`: its number in the dead reader. */
export interface ForkFound {
  ordinal: number
  fd: number
  lazy: LazyMap
  /** The reader had seen to the userfaultfd; otherwise `fd` is still the child's, in the table of the reader's heir. */
  isSettled: boolean
}

export class EventJournal {
  readonly fd: number
  readonly #area: Uint8Array
  readonly #words: DataView
  #forks: number

  private constructor(fd: number, bytes: number) {
    this.fd = fd
    this.#area = fds.mapShared(fd, bytes)
    this.#words = new DataView(this.#area.buffer, this.#area.byteOffset)
    this.#forks = this.#words.getUint32(forksAt, true)
  }

  /** @param forks how many forks of this address space came before; children are named by their number */
  static create(lazy: LazyMap, forks = 0): EventJournal {
    const triples: number[] = []
    lazy.forEachPending((page, source, nr) => triples.push(page, source, nr))
    const bytes = snapshotAt + triples.length * 8
    const fd = fds.memfdCreate('pageferry-events')
    try {
      ftruncateSync(fd, bytes)
      const journal = new EventJournal(fd, bytes)
      const snapshot = Buffer.from(Float64Array.from(triples).buffer)
      journal.#area.set(snapshot, snapshotAt)
      journal.#words.setUint32(forksAt, forks, true)
      journal.#words.setUint32(settledAt, forks, true)
      journal.#forks = forks
      uffd.formatJournal(journal.#area, logCapacity)
      return journal
    } catch (error) {
      closeSync(fd)
      throw error
    }
  }

  /** The journal of a worker that died: the address space as it is now, and the forks of its log. */
  static open(fd: number): { journal: EventJournal; lazy: LazyMap; forks: ForkFound[] } {
    const { size } = fstatSync(fd)
    if (size < snapshotAt || (size - snapshotAt) % tripleBytes !== 0) {
      throw new PageferryError('INTERNAL', `an event journal of ${size} bytes is damaged`)
    }
    const journal = new EventJournal(fd, size)
    const snapshot = new Float64Array(journal.#area.slice(snapshotAt).buffer)
    const lazy = LazyMap.fromPending(snapshot)
    const forks: ForkFound[] = []
    const settled = journal.#words.getUint32(settledAt, true)
    for (const event of uffd.journalEvents(journal.#area)) {
      if (event.type === 'fork') {
        const ordinal = ++journal.#forks
        forks.push({ ordinal, fd: event.fd, lazy: lazy.fork(), isSettled: ordinal <= settled })
      } else applyEvent(lazy, event)
    }
    return { journal, lazy, forks }
  }

  /** Forks of this address space so far, over all journals that it had. */
  get forks(): number {
    return this.#forks
  }

  /** Time for a new journal: the next read might not find room. */
  get isFull(): boolean {
    return Number(this.#words.getBigUint64(8, true) >> 8n) > logCapacity - eventsPerRead
  }

  /** The number of the fork that was read; to be asked for once for each, in their order. */
  nextFork(): number {
    return ++this.#forks
  }

  /** The userfaultfds of all forks so far are with the keeper, so the numbers in the log mean nothing any more. */
  settleForks(): void {
    this.#words.setUint32(settledAt, this.#forks, true)
  }

  /** What is pending now; every event but the faults is in the log by then. Entering them is the caller's. */
  read(uffdFd: number, gate?: InstallGate): uffd.UffdEvent[] {
    return uffd.readIntoJournal(uffdFd, this.#area, gate)
  }

  close(): void {
    closeSync(this.fd)
  }
}

/** Enters what an event says about the address space; a fault says nothing, a fork is for the caller. */
export function applyEvent(lazy: LazyMap, event: uffd.UffdEvent): void {
  switch (event.type) {
    case 'remove':
      lazy.remove(pageOf(event.start), pageOf(event.end) - pageOf(event.start))
      return
    case 'unmap':
      lazy.unmap(pageOf(event.start), pageOf(event.end) - pageOf(event.start))
      return
    case 'remap':
      lazy.remap(pageOf(event.from), pageOf(event.to), pageOf(event.length))
      return
  }
}
