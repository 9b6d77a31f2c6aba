import { closeSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import type { FileLockEntry } from '@pageferry/images'
import { fds } from '@pageferry/kernel'
import { openChecked } from '../../open-checked.js'
import { type FdInfo, fdinfoLines } from '../../proc/fdinfo.js'
import type { SkeletonProcess } from '../../remote/skeleton-process.js'

/**
 * File locks (flock(2), fcntl(2)), as /proc/PID/fdinfo shows them (fs/locks.c, lock_get_status):
 *
 *     lock:   1: FLOCK  ADVISORY  WRITE 711 08:01:1234 0 EOF
 *     lock:   2: POSIX  ADVISORY  READ 711 08:01:1234 100 199
 *
 * An open file description holds those of flock(2) and those called OFDLCK. The process holds POSIX locks; they are shown
 * with the description that they were taken through.
 */

const { O_RDONLY, O_NONBLOCK } = fds
const { F_SETLK, F_OFD_SETLK, F_RDLCK, F_WRLCK, LOCK_SH, LOCK_EX, LOCK_NB } = fds
/** FileLockEntry.flag: FL_POSIX, FL_FLOCK, FL_OFDLCK of linux/filelock.h. */
const FL_POSIX = 1
const FL_FLOCK = 2
const FL_OFDLCK = 1024
const flags: Readonly<Record<string, number>> = { POSIX: FL_POSIX, FLOCK: FL_FLOCK, OFDLCK: FL_OFDLCK }
const types: Readonly<Record<string, number>> = { READ: F_RDLCK, WRITE: F_WRLCK }
const linePattern = /^\d+: (\w+) +(\w+) +(READ|WRITE|UNLCK) +(-?\d+) \S+ (\d+) (\d+|EOF)$/
/** struct flock of x86_64: two shorts, padding, start and length, pid, padding. */
const flockBytes = 32
const EAGAIN = 11
const EACCES = 13

export const whoHoldsIt = 'by another process, or by the original if the hosts share the file system'

/** A lock as the destination tries it in advance. */
export interface NeededLock {
  /** flock(2) */
  whole: boolean
  exclusive: boolean
  start: bigint
  /** 0: to the end of the file. */
  length: bigint
}

export function neededLocks(info: FdInfo): NeededLock[] {
  return dumpLocks(info).map(({ flag, type, start, len }) => {
    return { whole: flag === FL_FLOCK, exclusive: type === F_WRLCK, start, length: len }
  })
}

/** Whether all of them could be had now; leaves none. Before the migration: the freeze takes them. */
export function canLockFile(path: string, locks: readonly NeededLock[]): boolean {
  if (locks.length === 0) return true
  // O_NONBLOCK: a lease of another process on the file makes open(2) fail, instead of waiting until it is given up.
  const fd = openChecked(path, O_RDONLY | O_NONBLOCK, (stat) => stat.isFile())
  if (fd === null) return false
  try {
    return locks.every((lock) => canLock(fd, lock))
  } finally {
    closeSync(fd)
  }
}

function canLock(fd: number, { whole, exclusive, start, length }: NeededLock): boolean {
  if (!whole) return fds.canLock(fd, exclusive ? F_WRLCK : F_RDLCK, start, length)
  try {
    fds.flock(fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return false
    throw error
  }
}

/** Why the locks of a description cannot be moved; null: they can. */
export function lockProblem(info: FdInfo): string | null {
  for (const line of fdinfoLines(info, 'lock')) {
    const kind = linePattern.exec(line)?.[1] ?? ''
    if (kind === 'LEASE' || kind === 'DELEG') {
      return 'a lease (F_SETLEASE) is not moved: opening the file on the destination could break it'
    }
    if (parseLock(info.fd, line) === null) return `a lock of an unknown kind is not moved (${line})`
  }
  return null
}

/** Those that were taken through this description. */
export function dumpLocks(info: FdInfo): FileLockEntry[] {
  return fdinfoLines(info, 'lock').flatMap((line) => parseLock(info.fd, line) ?? [])
}

function parseLock(fd: number, line: string): FileLockEntry | null {
  const [, kind = '', , type = '', pid, first, last] = linePattern.exec(line) ?? []
  const [flag, lockType] = [flags[kind], types[type]]
  if (flag === undefined || lockType === undefined) return null
  const start = BigInt(first)
  const len = last === 'EOF' ? 0n : BigInt(last) - start + 1n
  return { flag, type: lockType, pid: Number(pid), fd, start, len }
}

/**
 * The skeleton takes them, and waits for none.
 *
 * A frozen original keeps its locks until it ends. Where both hosts see one file system, only what may be locked by two can
 * thus be had: see docs/decisions.
 *
 * @param owners names of files, by the descriptors that locks may refer to
 * @throws PROTOCOL when a lock has no owner: none may be lost
 */
export function restoreLocks(
  skeleton: SkeletonProcess,
  locks: readonly FileLockEntry[],
  owners: ReadonlyMap<number, string>,
): void {
  for (const lock of locks) {
    const name = owners.get(lock.fd)
    if (name === undefined) {
      throw new PageferryError('PROTOCOL', `a lock of descriptor ${lock.fd}, which is no regular file`)
    }
    queueLock(skeleton, lock, (errno) => lockError(name, errno))
  }
}

function lockError(name: string, errno: number): Error {
  if (errno === EAGAIN || errno === EACCES) {
    return new PageferryError('REFUSED', `a lock on ${name} is held on the destination: ${whoHoldsIt}`)
  }
  return new PageferryError('KERNEL', `the lock on ${name} cannot be taken: errno ${errno}`)
}

function queueLock(
  skeleton: SkeletonProcess,
  { flag, type, fd, start, len }: FileLockEntry,
  explain: (errno: number) => Error,
): void {
  const { pid } = skeleton
  if (type !== F_RDLCK && type !== F_WRLCK) throw new PageferryError('PROTOCOL', `a lock of type ${type}`)
  if (flag === FL_FLOCK) {
    skeleton.queue(pid, 'flock', [fd, (type === F_WRLCK ? LOCK_EX : LOCK_SH) | LOCK_NB], { explain })
    return
  }
  if (flag !== FL_POSIX && flag !== FL_OFDLCK) throw new PageferryError('PROTOCOL', `a lock of kind ${flag}`)
  const range = Buffer.alloc(flockBytes)
  range.writeInt16LE(type, 0)
  range.writeInt16LE(fds.SEEK_SET, 2)
  range.writeBigUInt64LE(start, 8)
  range.writeBigUInt64LE(len, 16)
  const command = flag === FL_POSIX ? F_SETLK : F_OFD_SETLK
  skeleton.queue(pid, 'fcntl', [fd, command, skeleton.put(range)], { explain })
}
