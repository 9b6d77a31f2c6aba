import { closeSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import { type FdinfoEntry, FdType, type FileEntry, type PipeData } from '@pageferry/images'
import { fds, processes } from '@pageferry/kernel'
import type { Problem } from '../capture-context.js'
import { type FdInfo, readFds } from '../proc/fdinfo.js'
import type { SkeletonProcess } from '../remote/skeleton-process.js'
import type { FileTable } from './file-table.js'
import { dumpPipeData, dumpPipeEnd, isReadEnd, isWriteEnd, pipeIdOf, restorePipes } from './pipe.js'
import {
  checkRegularFile,
  dumpRegularFile,
  escapesTracking,
  isRegularFile,
  restoreRegularFile,
} from './regular-file.js'

/** The table of descriptors: numbers, close-on-exec, and which of them share one open file description. */

const { FD_CLOEXEC, O_ASYNC, O_CLOEXEC, O_DIRECT, O_PATH } = fds

export interface DescriptorDump {
  fdinfo: FdinfoEntry[]
  pipesData: PipeData[]
}

/** Names what cannot be moved; opens nothing in the workload and stops nothing. */
export function checkDescriptors(pid: number): Problem[] {
  const problems: Problem[] = []
  const pidfd = fds.pidfdOpen(pid)
  try {
    const infos = readFds(pid)
    for (const info of infos) {
      const what = `descriptor ${info.fd} (${info.target})`
      const pipe = pipeIdOf(info)
      if (pipe !== null || isRegularFile(info)) {
        const copy = fds.pidfdGetfd(pidfd, info.fd)
        try {
          if (sendsSignals(info, copy)) problems.push({ what, reason: signalDriven })
          const problem = pipe === null ? checkRegularFile(info, copy) : null
          if (problem !== null) problems.push(problem)
        } finally {
          closeSync(copy)
        }
      }
      if (pipe !== null) {
        const ends = infos.filter((other) => pipeIdOf(other) === pipe)
        if (!ends.some((end) => isWriteEnd(end.flags)) || !ends.some((end) => isReadEnd(end.flags))) {
          problems.push({ what, reason: 'only one end of the pipe is in the process: redirect it to a file' })
        }
        if ((info.flags & O_DIRECT) !== 0)
          problems.push({ what, reason: 'a pipe in packet mode is not moved' })
      } else if (!isRegularFile(info)) {
        problems.push({ what, reason: `descriptors of this kind are not moved yet` })
      }
    }
  } finally {
    closeSync(pidfd)
  }
  return problems
}

const signalDriven = 'somebody gets signals from it (F_SETOWN, O_ASYNC, F_NOTIFY), and would get none there'

/** Also directory notification makes its user the owner (fcntl(2)); a process group as owner reads as an error. */
function sendsSignals(info: FdInfo, fd: number): boolean {
  if ((info.flags & O_PATH) !== 0) return false
  if ((info.flags & O_ASYNC) !== 0) return true
  try {
    return fds.fcntl(fd, fds.F_GETOWN) !== 0
  } catch {
    return true
  }
}

/** Whether something may write the workload's memory without any tracker noticing. */
export function hasUntrackedWriters(infos: FdInfo[]): boolean {
  return infos.some(
    (info) =>
      escapesTracking(info) ||
      info.target.includes('[io_uring]') ||
      info.target.startsWith('/dev/infiniband'),
  )
}

export function dumpDescriptors(
  pid: number,
  pidfd: number,
  infos: FdInfo[],
  files: FileTable,
): DescriptorDump {
  const fdinfo: FdinfoEntry[] = []
  const pipesData: PipeData[] = []
  const seen: { info: FdInfo; id: number; type: FdType }[] = []
  const pipesDone = new Set<number>()
  for (const info of infos) {
    const flags = (info.flags & O_CLOEXEC) !== 0 ? FD_CLOEXEC : 0
    const twin = seen.find(
      (other) =>
        other.info.target === info.target && fds.kcmp(pid, pid, fds.KCMP_FILE, other.info.fd, info.fd) === 0,
    )
    if (twin !== undefined) {
      fdinfo.push({ id: twin.id, flags, type: twin.type, fd: info.fd })
      continue
    }
    const id = files.nextId()
    const copy = fds.pidfdGetfd(pidfd, info.fd)
    try {
      if (sendsSignals(info, copy)) {
        throw new PageferryError('WORKLOAD_CHANGED', `descriptor ${info.fd} cannot be moved: ${signalDriven}`)
      }
      const pipe = pipeIdOf(info)
      const type = pipe !== null ? FdType.PIPE : FdType.REG
      if (pipe !== null) {
        files.addPipe(dumpPipeEnd(info, id, pipe))
        if (isReadEnd(info.flags) && !pipesDone.has(pipe)) {
          pipesDone.add(pipe)
          pipesData.push(dumpPipeData(copy, pipe))
        }
      } else {
        const problem = isRegularFile(info)
          ? checkRegularFile(info, copy)
          : { what: info.target, reason: 'unknown' }
        if (problem !== null) {
          throw new PageferryError(
            'WORKLOAD_CHANGED',
            `descriptor ${info.fd} cannot be moved: ${problem.reason}`,
          )
        }
        dumpRegularFile(info, copy, id, files)
      }
      fdinfo.push({ id, flags, type, fd: info.fd })
      seen.push({ info, id, type })
    } finally {
      closeSync(copy)
    }
  }
  return { fdinfo, pipesData }
}

/** Opens every description in this process, hands them over, and moves each to its numbers. */
export function restoreDescriptors(
  skeleton: SkeletonProcess,
  fdinfo: FdinfoEntry[],
  files: FileEntry[],
  pipesData: PipeData[],
  tids: ReadonlyMap<number, number>,
): void {
  const used = new Set(fdinfo.map((entry) => entry.id))
  const open = files.filter((file) => used.has(file.id))
  const pipes = open.flatMap((file) => (file.pipe === undefined ? [] : [file.pipe]))
  const descriptors = restorePipes(pipes, pipesData)
  try {
    for (const file of open) {
      if (file.reg !== undefined && file.type === FdType.REG)
        descriptors.set(file.id, restoreRegularFile(file.reg, tids))
    }
    for (const id of used) {
      if (!descriptors.has(id))
        throw new PageferryError('PROTOCOL', `descriptors refer to the unknown file ${id}`)
    }
    const ids = [...descriptors.keys()]
    const top = Math.max(63, ...fdinfo.map((entry) => entry.fd)) + 1
    allowDescriptors(skeleton.pid, top + 1 + ids.length)
    // Above every number that the workload uses, so that moving one never closes another.
    moveSocket(skeleton, top)
    const received = skeleton.sendFds(ids.map((id) => descriptors.get(id) as number))
    const { pid } = skeleton
    // Parked above the socket, where nothing else is: so the numbers are known, and all of it is one run.
    for (const [i, fd] of received.entries()) {
      const expected = BigInt(top + 1 + i)
      skeleton.queue(pid, 'fcntl', [fd, fds.F_DUPFD_CLOEXEC, top + 1], { expected })
    }
    skeleton.queue(pid, 'close_range', [0, top - 1, 0])
    const at = new Map(ids.map((id, i) => [id, top + 1 + i]))
    for (const entry of fdinfo) {
      const flags = (entry.flags & FD_CLOEXEC) !== 0 ? O_CLOEXEC : 0
      skeleton.queue(pid, 'dup3', [at.get(entry.id) as number, entry.fd, flags])
    }
    skeleton.queue(pid, 'close_range', [top + 1, 0xffff_ffff, 0])
  } finally {
    for (const fd of descriptors.values()) closeSync(fd)
  }
}

/** The workload's own limit is set later; until then it is ours, which may be lower. */
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

function moveSocket(skeleton: SkeletonProcess, to: number): void {
  const { pid, socketFd } = skeleton
  if (socketFd !== to) {
    skeleton.queue(pid, 'dup3', [socketFd, to, O_CLOEXEC])
    skeleton.queue(pid, 'close', [socketFd])
  }
  skeleton.queue(pid, 'close_range', [to + 1, 0xffff_ffff, 0])
  skeleton.socketFd = to
}

/** The number that the next open(2) in the skeleton gives, when it has these descriptors. */
export function lowestFreeFd({ socketFd }: SkeletonProcess, fdinfo: FdinfoEntry[]): number {
  const used = new Set([socketFd, ...fdinfo.map(({ fd }) => fd)])
  let free = 0
  while (used.has(free)) free++
  return free
}
