import { addon } from './addon.js'
import type { InstallGate } from './install-gate.js'
import type { UffdEvent } from './uffd.js'

/**
 * The event journal of native/event-journal.c, which alone knows its layout. It is a file of shared memory into which
 * the kernel writes events of a userfaultfd. So kill -9 of the reader at any instruction loses no event.
 */

/** An event that changes the address space and is not a fork. */
export type ChangeEvent = Extract<UffdEvent, { type: 'remap' | 'remove' | 'unmap' }>

interface Binding {
  format(area: Uint8Array, capacity: number): void
  read(fd: number, area: Uint8Array, gate: Uint8Array | undefined): UffdEvent[]
  append(area: Uint8Array, type: ChangeEvent['type'], a: bigint, b: bigint, c: bigint): void
  count(area: Uint8Array): number
  events(area: Uint8Array): UffdEvent[]
}

const native = addon.eventJournal as Binding

/** Bytes in front of the log, and bytes of one event. */
export const headBytes = 4096
export const eventBytes = 32

/** Bytes at the start that belong to the owner of the journal, behind the addon's own three words. */
export const userBytes = { from: 64, to: 2048 } as const

/** Makes a journal for `capacity` events out of zeroed shared memory. */
export function format(area: Uint8Array, capacity: number): void {
  native.format(area, capacity)
}

/**
 * Reads like `uffd.readEvents`, at most 64 events. Events that change the address space stay in the log. Faults are
 * returned too. ENOSPC, with nothing read, when the log is full.
 * @param gate of the other threads that install through this userfaultfd; it closes for the pages that the events name
 */
export function read(fd: number, area: Uint8Array, gate?: InstallGate): UffdEvent[] {
  return native.read(fd, area, gate?.area)
}

/** Appends a change that was read into another journal. ENOSPC when the log is full. */
export function append(area: Uint8Array, event: ChangeEvent): void {
  if (event.type === 'remap') native.append(area, event.type, event.from, event.to, event.length)
  else native.append(area, event.type, event.start, event.end, 0n)
}

/** Number of events in the log. */
export function count(area: Uint8Array): number {
  return native.count(area)
}

/**
 * The log, oldest first, including the last read of a killed reader. Fork descriptors are numbers of the reader: see
 * Heir.
 */
export function events(area: Uint8Array): UffdEvent[] {
  return native.events(area)
}
