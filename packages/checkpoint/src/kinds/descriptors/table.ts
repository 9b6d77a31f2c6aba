import { PageferryError } from '@pageferry/base'
import type { FdinfoEntry } from '@pageferry/images'
import { fds, processes } from '@pageferry/kernel'
import { maxFdsPerMessage, type SkeletonProcess } from '../../remote/skeleton-process.js'
import {
  type DescriptorsOf,
  type DumpedFiles,
  type FileImages,
  OpenedFiles,
  type OpenedFilesOptions,
} from './open-files.js'

/**
 * The descriptor table of one process: its numbers, close-on-exec, and the open file description behind each number.
 */

const { O_CLOEXEC, FD_CLOEXEC } = fds

export function dumpTable(process: DescriptorsOf, files: DumpedFiles): FdinfoEntry[] {
  return process.infos.map((info) => {
    const { id, type } = files.get(process, info)
    return { id, type, fd: info.fd, flags: (info.flags & O_CLOEXEC) !== 0 ? FD_CLOEXEC : 0 }
  })
}

/** Opens all files of a process in this one, and gives them to the skeleton. `tids` as in RestoreTree. */
export function restoreDescriptors(
  skeleton: SkeletonProcess,
  fdinfo: FdinfoEntry[],
  images: FileImages,
  tids: ReadonlyMap<number, number>,
  options?: OpenedFilesOptions,
): void {
  const files = new OpenedFiles(new Set(fdinfo.map(({ id }) => id)), images, tids, options)
  try {
    restoreTable(skeleton, fdinfo, files)
    files.finish(skeleton, fdinfo)
  } finally {
    files.close()
  }
}

/**
 * Puts every description at its numbers. The only numbers used are the workload's own and one for the socket. So a
 * descriptor may stand at the limit, and a thousand may stand side by side.
 *
 * A process that receives descriptors gets the lowest free numbers, in ascending order. So they are sent in the order
 * of their numbers, once per number. The first free number cannot be above the first number that is still to be filled,
 * and so on. Each one thus arrives at its number or below, in a gap. They are moved from the last to the first, so none
 * overwrites another: a number that is still to be filled holds at most one that has arrived there and has moved on
 * already.
 *
 *     to fill   0 1 2 5 9, the socket at 3
 *     arrive    0 1 2 4 5
 *     move      5 -> 9, then 4 -> 5
 *
 * The skeleton keeps only the workload's descriptors: its socket is closed, too.
 */
function restoreTable(skeleton: SkeletonProcess, fdinfo: FdinfoEntry[], files: OpenedFiles): void {
  const { pid } = skeleton
  const entries = [...fdinfo].sort((a, b) => a.fd - b.fd)
  for (const [i, { fd }] of entries.entries()) {
    if (fd === entries[i - 1]?.fd) throw new PageferryError('PROTOCOL', `descriptor ${fd} is there twice`)
  }
  const socket = lowestUnused(entries)
  allowDescriptors(pid, Math.max(socket, entries.at(-1)?.fd ?? 0) + 1)
  emptyTable(skeleton, socket)
  for (let first = 0; first < entries.length; first += maxFdsPerMessage) {
    const part = entries.slice(first, first + maxFdsPerMessage)
    const arrived = skeleton.sendFds(part.map(({ id }) => files.get(id).fd))
    for (const [i, { fd, flags }] of [...part.entries()].reverse()) {
      const from = arrived[i]
      if (from > fd) throw new PageferryError('INTERNAL', `descriptor ${fd} arrived at ${from}`)
      const closeOnExec = (flags & FD_CLOEXEC) !== 0
      if (from !== fd) {
        skeleton.queue(pid, 'dup3', [from, fd, closeOnExec ? O_CLOEXEC : 0])
        skeleton.queue(pid, 'close', [from])
      } else if (!closeOnExec) skeleton.queue(pid, 'fcntl', [fd, fds.F_SETFD, 0])
    }
  }
  skeleton.closeSocket()
}

/** The lowest number that the workload does not use; `entries` are in order. */
function lowestUnused(entries: readonly FdinfoEntry[]): number {
  const gap = entries.findIndex(({ fd }, i) => fd !== i)
  return gap === -1 ? entries.length : gap
}

/** The workload's own limit is set later. Until then ours applies, which may be lower. */
function allowDescriptors(pid: number, nr: number): void {
  const { soft, hard } = processes.prlimit(pid, processes.RLIMIT_NOFILE)
  const wanted = BigInt(nr)
  if (soft >= wanted) return
  try {
    processes.prlimit(pid, processes.RLIMIT_NOFILE, { soft: wanted, hard: hard > wanted ? hard : wanted })
  } catch (error) {
    throw new PageferryError('REFUSED', `the destination allows ${hard} descriptors, ${nr} are needed`, {
      cause: error,
    })
  }
}

/** Closes everything in the table except the socket, which moves to that number. */
function emptyTable(skeleton: SkeletonProcess, socket: number): void {
  const { pid } = skeleton
  if (skeleton.socketFd !== socket) skeleton.queue(pid, 'dup3', [skeleton.socketFd, socket, O_CLOEXEC])
  skeleton.socketFd = socket
  if (socket > 0) skeleton.queue(pid, 'close_range', [0, socket - 1, 0])
  skeleton.queue(pid, 'close_range', [socket + 1, 0xffff_ffff, 0])
}
