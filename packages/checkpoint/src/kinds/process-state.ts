import { readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { processes } from '@pageferry/kernel'
import { type FsEntry, type FileEntry, type RlimitEntry, type TaskCoreEntry, TASK_STATE } from '@pageferry/images'
import type { CaptureContext } from '../capture-context.js'
import { readStat } from '../proc/stat.js'
import { readStatus } from '../proc/status.js'
import type { SkeletonProcess } from '../remote/skeleton-process.js'
import { type FileTable, requiredPath } from './file-table.js'
import { dumpPendingSignals, dumpSignalActions } from './signals.js'
import { dumpTimers } from './timers.js'

/** What belongs to the process as a whole: limits, scores, names, directories, signal actions, timers. */

const prGetChildSubreaper = 37
const prSetChildSubreaper = 36
const prSetName = 15

export function dumpProcessState(context: CaptureContext): TaskCoreEntry {
  const { pid, process } = context
  const stat = readStat(pid)
  process.leader.call('prctl', prGetChildSubreaper, process.scratch, 0, 0, 0)
  const rlimits: RlimitEntry[] = []
  for (let resource = 0; resource < processes.RLIM_NLIMITS; resource++) {
    const limit = processes.prlimit(pid, resource)
    rlimits.push({ cur: limit.soft, max: limit.hard })
  }
  return {
    taskState: TASK_STATE.ALIVE,
    exitCode: 0,
    personality: Number.parseInt(readFileSync(`/proc/${pid}/personality`, 'utf8'), 16),
    flags: stat.flags,
    blkSigset: process.leader.mask,
    comm: stat.comm,
    timers: dumpTimers(context),
    rlimits: { rlimits },
    signalsS: dumpPendingSignals(process.leader.tid, true),
    oomScoreAdj: Number(readFileSync(`/proc/${pid}/oom_score_adj`, 'utf8')),
    sigactions: dumpSignalActions(context),
    childSubreaper: process.read(process.scratch, 4).readInt32LE(0) !== 0,
  }
}

/** Directories and umask; the directories are entered into the file table as CRIU does. */
export function dumpFs(pid: number, files: FileTable): FsEntry {
  const cwd = readlinkSync(`/proc/${pid}/cwd`)
  const root = readlinkSync(`/proc/${pid}/root`)
  return {
    cwdId: files.mappedFile(cwd, `cwd:${cwd}`, 0o200000),
    rootId: files.mappedFile(root, `root:${root}`, 0o200000),
    umask: readStatus(pid).umask,
  }
}

/** From the skeleton itself, with the privileges it still has. */
export function restoreProcessState(
  skeleton: SkeletonProcess,
  state: TaskCoreEntry,
  fs: FsEntry,
  files: FileEntry[],
): void {
  const path = (id: number, what: string): bigint =>
    skeleton.write(Buffer.from(`${requiredPath(files, id, what)}\0`))
  const root = requiredPath(files, fs.rootId, 'the root directory')
  skeleton.call('chdir', path(fs.cwdId, 'the working directory'))
  if (root !== '/') skeleton.call('chroot', path(fs.rootId, 'the root directory'))
  if (fs.umask !== undefined) skeleton.call('umask', fs.umask)
  skeleton.call('personality', state.personality)
  if (state.childSubreaper === true) skeleton.call('prctl', prSetChildSubreaper, 1, 0, 0, 0)
}

/** From outside: what needs no cooperation. Limits come last, they could get in our own way. */
export function restoreFromOutside(pid: number, state: TaskCoreEntry): void {
  if (state.oomScoreAdj !== undefined) writeFileSync(`/proc/${pid}/oom_score_adj`, String(state.oomScoreAdj))
  for (const [resource, limit] of (state.rlimits?.rlimits ?? []).entries()) {
    processes.prlimit(pid, resource, { soft: limit.cur, hard: limit.max })
  }
}

/** PR_SET_NAME names the calling thread; /proc/PID/comm can be written only from within the process. */
export function restoreComm(skeleton: SkeletonProcess, tid: number, comm: string): void {
  skeleton.callIn(tid, 'prctl', prSetName, skeleton.write(Buffer.from(`${comm}\0`)), 0, 0, 0)
}
