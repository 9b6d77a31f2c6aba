import { closeSync, fstatSync, statSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import type { RegFileEntry } from '@pageferry/images'
import { fds } from '@pageferry/kernel'
import type { Problem } from '../capture-context.js'
import type { FdInfo } from '../proc/fdinfo.js'
import { type FileTable, noOwner } from './file-table.js'

/** Regular files, directories and the memory devices: whatever open(2) of the same path gives again. */

const { O_CLOEXEC, O_CREAT, O_DIRECT, O_EXCL, O_PATH, O_TRUNC } = fds
const creationFlags = O_CREAT | O_EXCL | O_TRUNC | O_CLOEXEC
const typeMask = 0o170000
const directory = 0o040000
const regular = 0o100000
const characterDevice = 0o020000
/** null, zero, full, random, urandom (Documentation/admin-guide/devices.txt, major 1) */
const memoryDevices = new Set([3, 5, 7, 8, 9].map((minor) => (1 << 8) | minor))

/** Whether this kind is responsible; `fd` is a duplicate of the descriptor in this process. */
export function isRegularFile(info: FdInfo): boolean {
  return info.target.startsWith('/') && !info.target.startsWith('/memfd:')
}

export function checkRegularFile(info: FdInfo, fd: number): Problem | null {
  const what = `descriptor ${info.fd} (${info.target})`
  const stat = fstatSync(fd)
  const type = stat.mode & typeMask
  if (!isText(info.target)) return { what, reason: 'its path is not valid UTF-8, which images require' }
  if (info.target.endsWith(' (deleted)') && stat.nlink === 0) {
    return { what, reason: 'the file is deleted: the destination cannot open it' }
  }
  if (!leadsTo(info.target, fd)) {
    return {
      what,
      reason: 'the path no longer leads to it: the file was deleted, renamed over or mounted over',
    }
  }
  if ((info.flags & O_PATH) !== 0) return { what, reason: 'descriptors opened with O_PATH are not moved' }
  if (info.lock.length > 0) return { what, reason: 'it holds a file lock, which would be lost' }
  if (type === regular || type === directory) return null
  if (type === characterDevice && memoryDevices.has(stat.rdev)) return null
  if (type === characterDevice) return { what, reason: 'a terminal or device is not moved' }
  return { what, reason: 'a special file (FIFO, socket or block device) is not moved' }
}

/** /proc/PID or /proc/PID/task/TID with the ids of this host; any other path as it is. */
function ownProcPath(path: string, tids: ReadonlyMap<number, number>): string {
  return path.replace(/^\/proc\/(\d+)(\/task\/)?(\d+)?(?=\/|$)/, (all, pid, task, tid) => {
    const ours = tids.get(Number(pid))
    if (ours === undefined) return all
    return `/proc/${ours}${task ?? ''}${tid === undefined ? '' : (tids.get(Number(tid)) ?? tid)}`
  })
}

/** What Node could not decode, it has replaced: such a path leads elsewhere. */
export function isText(path: string): boolean {
  return !path.includes('\ufffd')
}

function leadsTo(path: string, fd: number): boolean {
  const ours = fstatSync(fd, { bigint: true })
  const there = statSync(path, { bigint: true, throwIfNoEntry: false })
  return there !== undefined && there.dev === ours.dev && there.ino === ours.ino
}

/** O_DIRECT reads write memory behind every tracker's back. */
export function escapesTracking(info: FdInfo): boolean {
  return (info.flags & O_DIRECT) !== 0 && isRegularFile(info)
}

export function dumpRegularFile(info: FdInfo, fd: number, id: number, files: FileTable): void {
  const stat = fstatSync(fd)
  files.addRegular({
    id,
    flags: info.flags & ~creationFlags,
    pos: info.position,
    fown: noOwner,
    name: info.target,
    size: (stat.mode & typeMask) === regular ? BigInt(stat.size) : undefined,
    mode: stat.mode,
  })
}

/**
 * Opens the file in this process, at the position it had. `tids` has the ids that the workload's threads have on
 * this host, by those they had on the source: what it holds open of its own files in /proc are these threads'.
 */
export function restoreRegularFile(entry: RegFileEntry, tids: ReadonlyMap<number, number>): number {
  let fd: number
  try {
    fd = fds.open(ownProcPath(entry.name, tids), (entry.flags & ~creationFlags) | O_CLOEXEC)
  } catch (error) {
    throw new PageferryError('REFUSED', `${entry.name} cannot be opened on the destination`, { cause: error })
  }
  const { mode } = fstatSync(fd)
  if (entry.mode !== undefined && (mode & typeMask) !== (entry.mode & typeMask)) {
    closeSync(fd)
    throw new PageferryError('REFUSED', `${entry.name} is another kind of file on the destination`)
  }
  if ((mode & typeMask) !== characterDevice) fds.lseek(fd, entry.pos, fds.SEEK_SET)
  return fd
}
