/**
 * Another process's memory. `memFd` is an open /proc/PID/mem. `runs` is a run table of [firstPage, nrPages] pairs, of
 * which the first `nrRuns` count. A thread that serves userfaults must not touch missing pages with these functions: it
 * would wait for a fault that no other thread serves.
 */
import { addon } from './addon.js'

export * from './mman.js'

interface Native {
  readRuns(pid: number, memFd: number, runs: Float64Array, nrRuns: number, out: Uint8Array): number
  readBytes(pid: number, address: bigint, length: number): Uint8Array
  writeBytes(pid: number, address: bigint, bytes: Uint8Array): void
  pread(memFd: number, address: bigint, out: Uint8Array): number
  pwrite(memFd: number, address: bigint, bytes: Uint8Array): number
  writeRuns(memFd: number, runs: Float64Array, nrRuns: number, data: Uint8Array): void
  splitZeroPages(buf: Uint8Array, nrPages: number, isZero: Uint8Array): number
  hashPages(buf: Uint8Array, nrPages: number, out: BigUint64Array): void
}

const native = addon.memory as Native

/**
 * Reads the pages of a run table one behind the other into `out` (TypeError if it is too small). Returns the number of
 * whole pages before the first page that cannot be read; the table's number when all could be. Pages of PROT_NONE areas
 * are read too. Throws ESRCH when the process is gone.
 */
export function readRuns(
  pid: number,
  memFd: number,
  runs: Float64Array,
  nrRuns: number,
  out: Uint8Array,
): number {
  return native.readRuns(pid, memFd, runs, nrRuns, out)
}

/** Reads all of the bytes, or throws EFAULT (also for PROT_NONE areas: those need `pread`). */
export function readBytes(pid: number, address: bigint, length: number): Uint8Array {
  return native.readBytes(pid, address, length)
}

/** Writes to writable areas. EFAULT when a byte cannot be written; the bytes before it are written then. */
export function writeBytes(pid: number, address: bigint, bytes: Uint8Array): void {
  native.writeBytes(pid, address, bytes)
}

/** Reads through /proc/PID/mem, whatever the protection. Fewer bytes: the rest is unmapped. 0: the process is gone. */
export function pread(memFd: number, address: bigint, out: Uint8Array): number {
  return native.pread(memFd, address, out)
}

/** Writes through /proc/PID/mem, also to read-only private areas. Returns the bytes written. */
export function pwrite(memFd: number, address: bigint, bytes: Uint8Array): number {
  return native.pwrite(memFd, address, bytes)
}

/**
 * Writes the pages of a run table, which lie one behind the other in `data`. EFAULT, EIO or ESRCH if some were not
 * written.
 */
export function writeRuns(memFd: number, runs: Float64Array, nrRuns: number, data: Uint8Array): void {
  native.writeRuns(memFd, runs, nrRuns, data)
}

/** Marks the all-zero pages in `isZero` (one byte per page) and moves the others to the front; returns their number. */
export function splitZeroPages(buf: Uint8Array, nrPages: number, isZero: Uint8Array): number {
  return native.splitZeroPages(buf, nrPages, isZero)
}

/** XXH64 of every page. It is not cryptographic: it finds changes, it does not detect forgeries. */
export function hashPages(buf: Uint8Array, nrPages: number, out: BigUint64Array): void {
  native.hashPages(buf, nrPages, out)
}
