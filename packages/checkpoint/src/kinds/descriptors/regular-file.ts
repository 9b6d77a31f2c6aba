import { closeSync, fstatSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import { FdType, type RegFileEntry } from '@pageferry/images'
import { fds } from '@pageferry/kernel'
import { type FdInfo, fdinfoLines } from '../../proc/fdinfo.js'
import { isText } from '../../proc/text.js'
import {
  ghostIdentity,
  isDeleted,
  isSillyRenamed,
  lastName,
  linkedElsewhere,
  sillyRenamed,
} from '../ghosts/find.js'
import { leadsTo } from '../leads-to.js'
import { dumpLocks, lockProblem } from './file-locks.js'
import type { FdKind } from './kind.js'
import { specialNameOf } from './names.js'
import { dumpSignal } from './signal-owner.js'

/**
 * Regular files, directories and the memory devices: open(2) of the same path restores them. Those without a path are
 * ghosts, which the destination has by the time it opens them.
 */

const { O_APPEND, O_CREAT, O_EXCL, O_TRUNC, O_CLOEXEC, O_DIRECT, O_PATH } = fds
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
  images: ['filelocks'],

  matches: ({ target }) => target.startsWith('/') && !target.startsWith('/memfd:'),

  check({ info, copy }) {
    const stat = fstatSync(copy)
    const type = stat.mode & typeMask
    if (!isText(info.target)) return 'its path is not valid UTF-8, which images require'
    if ((info.flags & O_PATH) !== 0) return 'descriptors opened with O_PATH are not moved'
    const special = specialNameOf(copy)
    if (special !== undefined) return `${special} is not moved yet`
    if (type === characterDevice && !memoryDevices.has(stat.rdev)) {
      return isDeleted(info.target)
        ? 'a terminal that has hung up is not moved'
        : 'a terminal or device is not moved'
    }
    if (![regular, directory, characterDevice].includes(type)) {
      return 'a special file (FIFO, socket or block device) is not moved'
    }
    if (ghostOf(info, copy) === null && !leadsTo(info.target, fstatSync(copy, { bigint: true }))) {
      if (isDeleted(info.target) && stat.nlink > 0) return linkedElsewhere
      return 'the path no longer leads to it: another file system is mounted over it, or it was exchanged just now'
    }
    if (isSillyRenamed(info.target)) return sillyRenamed
    return lockProblem(info)
  },

  /** O_DIRECT reads and RDMA write memory past every tracker. */
  escapesTracking: ({ flags, target }) => (flags & O_DIRECT) !== 0 || target.startsWith('/dev/infiniband'),

  /**
   * Position and locks. Devices have no position, and who appends does not use it. Contents without a path are a matter of
   * ghosts/check.ts.
   */
  outside(info) {
    const hasPosition = !info.target.startsWith('/dev/') && (info.flags & O_APPEND) === 0
    return hasPosition || fdinfoLines(info, 'lock').length > 0 ? {} : undefined
  },

  neededPath: ({ target }) => (isDeleted(target) ? undefined : target),

  dump({ info, copy }, id, tree): RegFileEntry {
    const stat = fstatSync(copy)
    const ghost = ghostOf(info, copy)
    if (ghost !== null) tree.noteGhost(id, ghost)
    for (const lock of dumpLocks(info)) tree.add('filelocks', lock)
    return {
      id,
      flags: info.flags & ~creationFlags,
      pos: info.position,
      fown: dumpSignal(info, copy),
      name: ghost === null ? info.target : lastName(info.target),
      size: (stat.mode & typeMask) === regular ? BigInt(stat.size) : undefined,
      mode: stat.mode,
    }
  },

  create({ id, name, flags, mode, pos }, { tids, openGhost }) {
    let fd: number
    try {
      fd = openGhost(id, flags) ?? fds.open(ownProcPath(name, tids), (flags & ~creationFlags) | O_CLOEXEC)
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

/** Its identity as a file without a name; null: it has one. */
function ghostOf({ target }: FdInfo, copy: number): string | null {
  return isDeleted(target) ? ghostIdentity(fstatSync(copy, { bigint: true })) : null
}
