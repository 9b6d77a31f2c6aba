import { closeSync, fstatSync, ftruncateSync } from 'node:fs'
import { addressOf, PageferryError, pageOf } from '@pageferry/base'
import { eventJournal, fds, type InstallGate, type uffd } from '@pageferry/kernel'
import { LazyMap, type MapEvent } from '@pageferry/pages'

/**
 * The missing pages of one address space, kept so that they survive kill -9 of the worker that serves it.
 *
 *     kernel's head | own words | log of events | snapshot: LazyMap.toTable()
 *
 * The journal is a memfd that the keeper holds. The snapshot is the LazyMap at the journal's birth; the log holds every
 * event since. The kernel writes events directly into it (kernel/native/event-journal.c), so a kill between two
 * instructions loses no event. The journal does not say which pages were installed since: a page that is there answers
 * EEXIST.
 *
 * Events are entered into the LazyMap later than they are read, and now and then in another order (event-order.ts). One
 * word says how many events of the log are in the LazyMap, in the order of the log. The successor puts the others in
 * order.
 *
 * The log is bounded. When it is full, or the order was another one, the owner makes a new journal out of the LazyMap
 * as it is. The keeper gets it under the same name, which replaces the old one at once.
 */

/** 512 KiB of log. A program that discards memory as fast as it can fills it in a second. */
const logCapacity = 16_384
/** The most events that one read brings (UFFD_MAX_EVENTS of the addon). */
const eventsPerRead = 64

/**
 * Own words, 32 bits each. First: forks before this journal. Second: forks whose userfaultfd the keeper has. Third:
 * events of the log, including forks, that are in the LazyMap in the order of the log.
 */
const { from: forksAt } = eventJournal.userBytes
const settledAt = forksAt + 4
const enteredAt = forksAt + 8
const snapshotAt = eventJournal.headBytes + logCapacity * eventJournal.eventBytes
const tripleBytes = 24

/**
 * A fork in the log, with the child's address space at its birth. `fd`: the userfaultfd's number in the dead reader.
 */
export interface ForkFound {
  ordinal: number
  fd: number
  lazy: LazyMap
  unsettled: MapEvent[]
  /**
   * The reader gave the userfaultfd to the keeper. Otherwise `fd` is still the child's, in the table of the reader's
   * heir.
   */
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

  /**
   * @param forks how many forks of this address space came before; children are named by their number
   * @param unsettled events that were read and are not in the LazyMap yet
   */
  static create(lazy: LazyMap, forks = 0, unsettled: readonly MapEvent[] = []): EventJournal {
    const table = lazy.toTable()
    const bytes = snapshotAt + table.byteLength
    const fd = fds.memfdCreate('pageferry-events')
    try {
      ftruncateSync(fd, bytes)
      const journal = new EventJournal(fd, bytes)
      journal.#area.set(Buffer.from(table.buffer), snapshotAt)
      journal.#words.setUint32(forksAt, forks, true)
      journal.#words.setUint32(settledAt, forks, true)
      journal.#forks = forks
      eventJournal.format(journal.#area, logCapacity)
      for (const event of unsettled) eventJournal.append(journal.#area, changeEvent(event))
      return journal
    } catch (error) {
      closeSync(fd)
      throw error
    }
  }

  /**
   * Opens the journal of a dead worker. Changes whose order was known are in the LazyMap; the others come as they were
   * read; forks are found among both.
   */
  static open(fd: number): {
    journal: EventJournal
    lazy: LazyMap
    unsettled: MapEvent[]
    forks: ForkFound[]
  } {
    const { size } = fstatSync(fd)
    if (size < snapshotAt || (size - snapshotAt) % tripleBytes !== 0) {
      throw new PageferryError('INTERNAL', `an event journal of ${size} bytes is damaged`)
    }
    const journal = new EventJournal(fd, size)
    const snapshot = new Float64Array(journal.#area.slice(snapshotAt).buffer)
    const lazy = LazyMap.fromTable(snapshot)
    const forks: ForkFound[] = []
    const unsettled: MapEvent[] = []
    const settled = journal.#words.getUint32(settledAt, true)
    const entered = journal.#words.getUint32(enteredAt, true)
    for (const [index, event] of eventJournal.events(journal.#area).entries()) {
      if (event.type === 'fork') {
        const ordinal = ++journal.#forks
        forks.push({ ordinal, fd: event.fd, ...childOf(lazy, unsettled), isSettled: ordinal <= settled })
      } else if (index < entered) for (const change of mapEvents(event)) lazy.apply(change)
      else unsettled.push(...mapEvents(event))
    }
    return { journal, lazy, unsettled, forks }
  }

  /** Forks of this address space so far, over all journals that it had. */
  get forks(): number {
    return this.#forks
  }

  /** A new journal is due: the next read might not find room. */
  get isFull(): boolean {
    return eventJournal.count(this.#area) > logCapacity - eventsPerRead
  }

  /** Notes that all events read so far are in the LazyMap, in the order of the log. */
  noteEntered(): void {
    this.#words.setUint32(enteredAt, eventJournal.count(this.#area), true)
  }

  /** Returns the number of the fork that was read. Call it once per fork, in their order. */
  nextFork(): number {
    return ++this.#forks
  }

  /**
   * Notes that the keeper has the userfaultfds of all forks so far; the descriptor numbers in the log mean nothing any
   * more.
   */
  settleForks(): void {
    this.#words.setUint32(settledAt, this.#forks, true)
  }

  /** Reads pending events. Every event but the faults is in the log when it returns. The caller enters them. */
  read(uffdFd: number, gate?: InstallGate): uffd.UffdEvent[] {
    return eventJournal.read(uffdFd, this.#area, gate)
  }

  close(): void {
    closeSync(this.fd)
  }
}

/** The state that a child inherits from its parent at the fork. */
function childOf(lazy: LazyMap, unsettled: readonly MapEvent[]): { lazy: LazyMap; unsettled: MapEvent[] } {
  return { lazy: lazy.fork(), unsettled: [...unsettled] }
}

/** Changes that an event makes to the address space, in pages. A fault makes none; a fork is for the caller. */
export function mapEvents(event: uffd.UffdEvent): MapEvent[] {
  switch (event.type) {
    case 'remove':
    case 'unmap': {
      const first = pageOf(event.start)
      return [{ type: event.type, first, nr: pageOf(event.end) - first }]
    }
    case 'remap':
      return [{ type: 'remap', from: pageOf(event.from), to: pageOf(event.to), nr: pageOf(event.length) }]
    default:
      return []
  }
}

/** The inverse of `mapEvents`. */
function changeEvent(event: MapEvent): eventJournal.ChangeEvent {
  if (event.type === 'remap') {
    return {
      type: 'remap',
      from: addressOf(event.from),
      to: addressOf(event.to),
      length: addressOf(event.nr),
    }
  }
  return { type: event.type, start: addressOf(event.first), end: addressOf(event.first + event.nr) }
}
