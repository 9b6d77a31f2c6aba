import { readFileSync, writeFileSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import { type RlimitEntry, TASK_STATE, type TaskCoreEntry, type TaskTimersEntry } from '@pageferry/images'
import { processes } from '@pageferry/kernel'
import type { CaptureContext } from '../capture-context.js'
import { readComm } from '../proc/comm.js'
import { readLimits, unlimited } from '../proc/limits.js'
import { type ProcStat, ticksPerSecond } from '../proc/stat.js'
import type { CallBatch } from '../remote/call-batch.js'
import type { SkeletonProcess } from '../remote/skeleton-process.js'
import {
  askAttributes,
  dumpOutsideAttributes,
  restoreAttributes,
  restoreOutsideAttributes,
  type Tell,
} from './attributes/entries.js'
import { dumpLoginUid } from './attributes/login-uid.js'
import { askMembarrier, restoreMembarrier } from './attributes/membarrier.js'
import { askSignalActions, dumpPendingSignals } from './signals.js'
import { askIntervalTimers, dumpPosixTimers } from './timers.js'

/** State of the process as a whole: limits, scores, names, signal actions, timers. */

const SIGSTOP = 19
const prGetChildSubreaper = 37
const prSetChildSubreaper = 36
const prSetName = 15
const rlimitCpu = 0
/** RLIMIT_SIGPENDING: signals that are queued, and POSIX timers. */
const rlimitSigpending = 11

/** Facts that only the process itself can find out, in any of its threads. */
export type ProcessAnswers = Pick<
  TaskCoreEntry,
  'childSubreaper' | 'sigactions' | 'membarrierRegistrationMask' | 'attributes'
> &
  Pick<TaskTimersEntry, 'real' | 'virt' | 'prof'>

/** @returns the answers, once the batch has run */
export function askProcess({ status }: CaptureContext, batch: CallBatch): () => ProcessAnswers {
  const subreaper = batch.room(4)
  const result = batch.add('prctl', prGetChildSubreaper, subreaper, 0, 0, 0)
  const sigactions = askSignalActions(status, batch)
  const timers = askIntervalTimers(batch)
  const membarrier = askMembarrier(batch)
  const attributes = askAttributes('process', batch)
  return () => {
    result()
    const childSubreaper = batch.read(subreaper, 4).readInt32LE(0) !== 0
    return {
      ...{ childSubreaper, sigactions: sigactions(), ...timers() },
      ...{ membarrierRegistrationMask: membarrier(), attributes: attributes() },
    }
  }
}

export function dumpProcessState(
  context: CaptureContext,
  answers: ProcessAnswers,
  stat: ProcStat,
): TaskCoreEntry {
  const { pid, process } = context
  const { childSubreaper, sigactions, membarrierRegistrationMask, attributes, ...timers } = answers
  return {
    taskState: process.stopSignal === 0 ? TASK_STATE.ALIVE : TASK_STATE.STOPPED,
    stopSigno: process.stopSignal,
    exitCode: 0,
    personality: Number.parseInt(readFileSync(`/proc/${pid}/personality`, 'utf8'), 16),
    flags: stat.flags,
    blkSigset: process.leader.mask,
    comm: readComm(pid, pid),
    timers: { ...timers, posix: dumpPosixTimers(context) },
    rlimits: { rlimits: dumpLimits(pid, stat) },
    signalsS: dumpPendingSignals(process.leader.tid, true),
    oomScoreAdj: Number(readFileSync(`/proc/${pid}/oom_score_adj`, 'utf8')),
    sigactions,
    childSubreaper,
    loginuid: dumpLoginUid(pid),
    membarrierRegistrationMask,
    attributes: [...attributes, ...dumpOutsideAttributes('process', pid, pid)],
  }
}

/** The processor time of a process begins anew on the destination: there its limit is what remained. */
function dumpLimits(pid: number, { cpuTicks }: ProcStat): RlimitEntry[] {
  const used = BigInt(Math.floor(cpuTicks / ticksPerSecond))
  const remains = (limit: bigint): bigint => (limit > used ? limit - used : 1n)
  return readLimits(pid).map(({ soft, hard }, resource) => {
    if (resource !== rlimitCpu) return { cur: soft, max: hard }
    return {
      cur: soft === unlimited ? soft : remains(soft),
      max: hard === unlimited ? hard : remains(hard),
    }
  })
}

/**
 * Runs in the skeleton, while it is privileged, and after all memory is mapped and locked. From outside only
 * CAP_SYS_RESOURCE may set another user's limits, and containers rarely have it (prlimit(2)).
 */
export function restoreLimits(skeleton: SkeletonProcess, state: TaskCoreEntry): void {
  for (const [resource, { cur, max }] of (state.rlimits?.rlimits ?? []).entries()) {
    if (resource === rlimitSigpending) allowSignals(skeleton, max)
    else setLimit(skeleton, resource, cur, max)
  }
}

/** Until the last signal is queued and the last timer exists: the workload may have more of them than its limit allows. */
function allowSignals(skeleton: SkeletonProcess, wanted: bigint): void {
  const { hard } = readLimits(skeleton.pid)[rlimitSigpending]
  const most = hard > wanted ? hard : wanted
  setLimit(skeleton, rlimitSigpending, most, most)
}

/** Lowers the limit that `restoreLimits` left high; that needs no privilege. */
export function restoreSignalLimit(skeleton: SkeletonProcess, state: TaskCoreEntry): void {
  const limit = state.rlimits?.rlimits[rlimitSigpending]
  if (limit !== undefined) setLimit(skeleton, rlimitSigpending, limit.cur, limit.max)
}

function setLimit(skeleton: SkeletonProcess, resource: number, cur: bigint, max: bigint): void {
  const limit = new BigUint64Array([cur, max])
  const args = [0, resource, skeleton.put(new Uint8Array(limit.buffer)), 0]
  skeleton.queue(skeleton.pid, 'prlimit64', args, {
    explain: () =>
      new PageferryError(
        'REFUSED',
        `the destination does not allow the workload's limit ${resource} (hard ${max}): ` +
          'start the restore-service with limits at least as high, or with CAP_SYS_RESOURCE',
      ),
  })
}

/** Runs in the skeleton, while it still has privileges. */
export function restoreProcessState(skeleton: SkeletonProcess, state: TaskCoreEntry): void {
  const { pid } = skeleton
  if (state.childSubreaper === true) skeleton.queue(pid, 'prctl', [prSetChildSubreaper, 1, 0, 0, 0])
}

const theProcess = 'the process'

/**
 * Runs in the skeleton, while it still has privileges and when all memory is mapped: afterwards no area may become
 * executable.
 */
export function restoreProcessAttributes(skeleton: SkeletonProcess, state: TaskCoreEntry, tell: Tell): void {
  restoreMembarrier(skeleton, state.membarrierRegistrationMask ?? 0, tell)
  restoreAttributes(skeleton, { tid: skeleton.pid, who: theProcess }, state.attributes, tell)
}

/** Sets state from outside that needs no cooperation. */
export function restoreFromOutside(pid: number, state: TaskCoreEntry, tell: Tell): void {
  restoreOutsideAttributes(pid, { tid: pid, who: theProcess }, state.attributes, tell)
  if (state.oomScoreAdj !== undefined) writeFileSync(`/proc/${pid}/oom_score_adj`, String(state.oomScoreAdj))
}

/**
 * A process that job control had stopped (SIGSTOP, SIGTSTP) stays stopped until SIGCONT. Each thread gets a signal of its own:
 * with one for the process, the others could run for a moment until the first thread has stopped them. It is always
 * SIGSTOP, because the workload may catch or block the others by now; only its parent's waitid could tell.
 *
 * The threads are in a ptrace stop: the signal waits, and is the first thing that each of them sees.
 */
export function restoreStop(pid: number, tids: Iterable<number>, { taskState }: TaskCoreEntry): void {
  if (taskState !== TASK_STATE.STOPPED) return
  for (const tid of tids) processes.tgkill(pid, tid, SIGSTOP)
}

/** PR_SET_NAME names the calling thread. /proc/PID/comm can be written only from within the process. */
export function restoreComm(skeleton: SkeletonProcess, tid: number, comm: Uint8Array): void {
  skeleton.queue(tid, 'prctl', [prSetName, skeleton.put(Buffer.concat([comm, Buffer.alloc(1)])), 0, 0, 0])
}
