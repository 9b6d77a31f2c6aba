import { closeSync, fstatSync, statSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import { FdType, type RegFileEntry } from '@pageferry/images'
import { fds } from '@pageferry/kernel'
import { fdinfoLines } from '../../proc/fdinfo.js'
import { isText } from '../../proc/text.js'
import type { FdKind } from './kind.js'
import { dumpSignal } from './signal-owner.js'

/** Regular files, directories and the memory devices: open(2) of the same path restores them. */

const { O_CREAT, O_EXCL, O_TRUNC, O_CLOEXEC, O_DIRECT, O_PATH } = fds
const creationFlags = O_CREAT | O_EXCL | O_TRUNC | O_CLOEXEC
const typeMask = 0o170000
const directory = 0o040000
const regular = 0o100000
const characterDevice = 0o020000
/** null, zero, full, random, urandom (Documentation/admin-guide/devices.txt, major 1) */
const memoryDevices = new Set([3, 5, 7, 8, 9].map((minor) => (1 << 8) | minor))

export const regularFile: FdKind<'reg'> = {
  name: 'file',
  type: FdType.REG,
  field: 'reg',

  matches: ({ target }) => target.startsWith('/') && !target.startsWith('/memfd:'),

  check({ info, copy }) {
    const stat = fstatSync(copy)
    const type = stat.mode & typeMask
    if (!isText(info.target)) return 'its path is not valid UTF-8, which images require'
    if (info.target.endsWith(' (deleted)') && stat.nlink === 0) {
      return 'the file is deleted: the destination cannot open it'
    }
    if (!leadsTo(info.target, copy)) {
      return 'the path no longer leads to it: the file was deleted, renamed over or mounted over'
    }
    if ((info.flags & O_PATH) !== 0) return 'descriptors opened with O_PATH are not moved'
    if (fdinfoLines(info, 'lock').length > 0) return 'it holds a file lock, which would be lost'
    if (type === regular || type === directory) return null
    if (type === characterDevice && memoryDevices.has(stat.rdev)) return null
    if (type === characterDevice) return 'a terminal or device is not moved'
    return 'a special file (FIFO, socket or block device) is not moved'
  },

  /** O_DIRECT reads and RDMA write memory past every tracker. */
  escapesTracking: ({ flags, target }) => (flags & O_DIRECT) !== 0 || target.startsWith('/dev/infiniband'),

  neededPath: ({ target }) => target,

  dump({ info, copy }, id): RegFileEntry {
    const stat = fstatSync(copy)
    return {
      id,
      flags: info.flags & ~creationFlags,
      pos: info.position,
      fown: dumpSignal(info, copy),
      name: info.target,
      size: (stat.mode & typeMask) === regular ? BigInt(stat.size) : undefined,
      mode: stat.mode,
    }
  },

  create({ name, flags, mode, pos }, { tids }) {
    let fd: number
    try {
      fd = fds.open(ownProcPath(name, tids), (flags & ~creationFlags) | O_CLOEXEC)
    } catch (error) {
      throw new PageferryError('REFUSED', `${name} cannot be opened on the destination`, { cause: error })
    }
    const found = fstatSync(fd).mode & typeMask
    if (mode !== undefined && found !== (mode & typeMask)) {
      closeSync(fd)
      throw new PageferryError('REFUSED', `${name} is another kind of file on the destination`)
    }
    if (found !== characterDevice) fds.lseek(fd, pos, fds.SEEK_SET)
    return fd
  },
}

/**
 * Replaces the workload's own ids in paths like /proc/PID and /proc/PID/task/TID by those of this host. Other paths
 * stay as they are. `tids` has the ids on this host, by those on the source.
 */
function ownProcPath(path: string, tids: ReadonlyMap<number, number>): string {
  return path.replace(/^\/proc\/(\d+)(\/task\/)?(\d+)?(?=\/|$)/, (all, pid, task, tid) => {
    const ours = tids.get(Number(pid))
    if (ours === undefined) return all
    return `/proc/${ours}${task ?? ''}${tid === undefined ? '' : (tids.get(Number(tid)) ?? tid)}`
  })
}

function leadsTo(path: string, fd: number): boolean {
  const ours = fstatSync(fd, { bigint: true })
  const there = statSync(path, { bigint: true, throwIfNoEntry: false })
  return there !== undefined && there.dev === ours.dev && there.ino === ours.ino
}
