import { addon } from './addon.js'

/**
 * userfaultfd(2) and its ioctls, on a descriptor of our own or of another process. Failures are thrown with their
 * errno. An installation that a changing address space stops is an {@link Outcome}, not an error.
 */

/** Flag of `create`: handle only faults that user mode raises. It needs no privilege. */
export const UFFD_USER_MODE_ONLY = 1

export const UFFD_FEATURE_PAGEFAULT_FLAG_WP = 1n << 0n
export const UFFD_FEATURE_EVENT_FORK = 1n << 1n
export const UFFD_FEATURE_EVENT_REMAP = 1n << 2n
export const UFFD_FEATURE_EVENT_REMOVE = 1n << 3n
export const UFFD_FEATURE_MISSING_HUGETLBFS = 1n << 4n
export const UFFD_FEATURE_MISSING_SHMEM = 1n << 5n
export const UFFD_FEATURE_EVENT_UNMAP = 1n << 6n
export const UFFD_FEATURE_SIGBUS = 1n << 7n
export const UFFD_FEATURE_THREAD_ID = 1n << 8n
export const UFFD_FEATURE_EXACT_ADDRESS = 1n << 11n
export const UFFD_FEATURE_WP_HUGETLBFS_SHMEM = 1n << 12n
export const UFFD_FEATURE_WP_UNPOPULATED = 1n << 13n
export const UFFD_FEATURE_POISON = 1n << 14n
export const UFFD_FEATURE_WP_ASYNC = 1n << 15n
export const UFFD_FEATURE_MOVE = 1n << 16n

export const UFFDIO_REGISTER_MODE_MISSING = 1
export const UFFDIO_REGISTER_MODE_WP = 2
export const UFFDIO_REGISTER_MODE_MINOR = 4

/** Flags of a pagefault event. */
export const UFFD_PAGEFAULT_FLAG_WRITE = 1
export const UFFD_PAGEFAULT_FLAG_WP = 2
export const UFFD_PAGEFAULT_FLAG_MINOR = 4

/**
 * How far an installation came.
 * - `done`: the whole table.
 * - `again`: the address space is changing. Read the events, then go on at page `pages` of the table.
 * - `no-range`: page `pages` of the table lies outside every registered range, so no thread faults on it there.
 * - `gone`: the address space does not exist any more.
 */
export interface Outcome {
  state: 'done' | 'again' | 'no-range' | 'gone'
  /** Pages of the table completed, in the table's order: installed + existing + overwritten. */
  pages: number
  installed: number
  existing: number
  overwritten: number
}

export type UffdEvent =
  | { type: 'pagefault'; address: bigint; flags: number /** 0 without FEATURE_THREAD_ID */; tid: number }
  | { type: 'fork' /** userfaultfd of the child; the reader owns it */; fd: number }
  | { type: 'remap'; from: bigint; to: bigint /** bytes */; length: bigint }
  | { type: 'remove' | 'unmap'; start: bigint; end: bigint }

interface Binding {
  create(flags: number): number
  api(fd: number, features: bigint): { features: bigint; ioctls: bigint }
  register(fd: number, address: bigint, length: bigint, mode: number): bigint
  unregister(fd: number, address: bigint, length: bigint): void
  wake(fd: number, address: bigint, length: bigint): void
  writeProtect(fd: number, address: bigint, length: bigint, on: boolean): void
  installRuns(
    fd: number,
    memFd: number,
    runs: Float64Array,
    nrRuns: number,
    data: Uint8Array,
    wake: boolean,
  ): Outcome
  zeroRuns(fd: number, runs: Float64Array, nrRuns: number, wake: boolean): Outcome
  isRegistered(fd: number, address: bigint): number
  readEvents(fd: number, max: number): UffdEvent[]
}

const native = addon.uffd as Binding

/** Makes a userfaultfd for our own address space, e.g. to probe features. Always add O_CLOEXEC to the flags. */
export function create(flags: number): number {
  return native.create(flags)
}

/** Does the handshake, once per descriptor. Returns all features of the kernel; EINVAL if a wanted one is missing. */
export function api(fd: number, features: bigint): { features: bigint; ioctls: bigint } {
  return native.api(fd, features)
}

/** Address and length are bytes, multiples of the page size. Returns a bit mask of the ioctls possible there. */
export function register(fd: number, address: bigint, length: bigint, mode: number): bigint {
  return native.register(fd, address, length, mode)
}

export function unregister(fd: number, address: bigint, length: bigint): void {
  native.unregister(fd, address, length)
}

/** Lets threads that wait in the range fault again: they go on, or their fault is reported once more. */
export function wake(fd: number, address: bigint, length: bigint): void {
  native.wake(fd, address, length)
}

export function writeProtect(fd: number, address: bigint, length: bigint, on: boolean): void {
  native.writeProtect(fd, address, length, on)
}

/**
 * UFFDIO_COPY of the pages of a run table, whose contents lie one after the other in `data`.
 *
 * A page that exists already is kept, or overwritten through `memFd` (/proc/PID/mem, open for writing; unused with
 * 'keep'). Overwrite only while the process is stopped: if it discarded the page in between, the write would raise a
 * fault and wait for us forever. Without `wake` no thread is resumed.
 */
export function installRuns(
  fd: number,
  memFd: number,
  runs: Float64Array,
  nrRuns: number,
  data: Uint8Array,
  onExisting: 'keep' | 'overwrite',
  wake: boolean,
): Outcome {
  return native.installRuns(fd, onExisting === 'overwrite' ? memFd : -1, runs, nrRuns, data, wake)
}

/** UFFDIO_ZEROPAGE of the pages of a run table; existing pages are kept and count as `existing`. */
export function zeroRuns(fd: number, runs: Float64Array, nrRuns: number, wake: boolean): Outcome {
  return native.zeroRuns(fd, runs, nrRuns, wake)
}

/** Whether a page is registered with the userfaultfd. Also returns false while the address space is changing. */
export function isRegistered(fd: number, address: bigint): boolean {
  return native.isRegistered(fd, address) !== 0
}

/**
 * Reads pending events, at most `max` (limit 64); empty if there are none. The descriptor must be O_NONBLOCK. Reading
 * consumes them: a forgotten fault comes again only after `wake`, other events never.
 */
export function readEvents(fd: number, max = 64): UffdEvent[] {
  return native.readEvents(fd, max)
}
