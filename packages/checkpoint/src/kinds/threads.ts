import { isKernelError, PageferryError, pageOf } from '@pageferry/base'
import {
  type AttributeEntry,
  type CoreEntry,
  entryToRegs,
  fpregsToXstate,
  Machine,
  regsToEntry,
  type ThreadCoreEntry,
  type ThreadInfoX86,
  xstateLayoutOf,
  xstateToFpregs,
} from '@pageferry/images'
import { memory, processes, ptrace } from '@pageferry/kernel'
import type { CaptureContext } from '../capture-context.js'
import { readComm } from '../proc/comm.js'
import type { CallBatch } from '../remote/call-batch.js'
import type { SkeletonProcess } from '../remote/skeleton-process.js'
import { timeBytes, withRemaining } from '../remote/waits.js'
import type { WorkloadThread } from '../remote/workload-thread.js'
import {
  askAttributes,
  dumpOutsideAttributes,
  restoreAttributes,
  restoreOutsideAttributes,
  type Tell,
} from './attributes/entries.js'
import { deadlinePolicy, deadlineReason } from './attributes/refused.js'
import { monotonicOffset } from './clocks.js'
import { askSecurebits, dumpCredentials } from './credentials.js'
import { dumpPendingSignals } from './signals.js'

/** One thread: registers, signal mask and stack, TLS, rseq, robust list, tid address, scheduling, name. */

const prGetTidAddress = 40
const prGetPdeathsig = 2
const prSetPdeathsig = 1
const ssDisable = 2
/** struct stack_t: ss_sp, ss_flags, ss_size */
const stackBytes = 24

/** A thread of a skeleton, and the state that it gets. */
export interface RestoredThread {
  /** Tid as the tracer sees it. */
  tid: number
  /** Tid as the workload sees it. */
  nsTid: number
  core: CoreEntry
}

/** Facts that only the thread itself can find out. */
export interface ThreadAnswers {
  robust: { address: bigint; length: number }
  stack: Buffer
  tidAddress: bigint
  pdeathsig: number
  secbits: number
  attributes: AttributeEntry[]
}

/** @returns the answers, once the batch has run */
export function askThread(batch: CallBatch): () => ThreadAnswers {
  const robust = batch.room(16)
  const stack = batch.room(stackBytes)
  const tidAddress = batch.room(8)
  const pdeathsig = batch.room(4)
  const results = [
    batch.add('get_robust_list', 0, robust, robust + 8n),
    batch.add('sigaltstack', 0, stack),
    batch.add('prctl', prGetTidAddress, tidAddress, 0, 0, 0),
    batch.add('prctl', prGetPdeathsig, pdeathsig, 0, 0, 0),
  ]
  const secbits = askSecurebits(batch)
  const attributes = askAttributes('thread', batch)
  return () => {
    for (const result of results) result()
    return {
      robust: {
        address: batch.read(robust, 8).readBigUInt64LE(0),
        length: Number(batch.read(robust + 8n, 8).readBigUInt64LE(0)),
      },
      stack: batch.read(stack, stackBytes),
      tidAddress: batch.read(tidAddress, 8).readBigUInt64LE(0),
      pdeathsig: batch.read(pdeathsig, 4).readInt32LE(0),
      secbits: secbits(),
      attributes: attributes(),
    }
  }
}

/** Everything of a thread in CRIU's core image, except state of the whole process. */
export function dumpThread(
  context: CaptureContext,
  thread: WorkloadThread,
  { robust, stack, tidAddress, pdeathsig, secbits, attributes }: ThreadAnswers,
): CoreEntry {
  const { pid, monotonicOffsetNs } = context
  const { tid } = thread
  const rseq = ptrace.getRseqConfiguration(tid)
  const scheduler = processes.getScheduler(tid)
  if (scheduler.policy === deadlinePolicy) {
    throw new PageferryError('WORKLOAD_CHANGED', `thread ${tid}: ${deadlineReason}`)
  }
  const threadInfo: ThreadInfoX86 = {
    clearTidAddr: tidAddress,
    gpregs: regsToEntry(movableRegisters(context, thread)),
    fpregs: xstateToFpregs(ptrace.getXstate(tid)),
    tls: [],
  }
  const threadCore: ThreadCoreEntry = {
    futexRla: robust.address,
    futexRlaLen: robust.length,
    schedNice: processes.getPriority(tid),
    schedPolicy: scheduler.policy,
    schedPrio: scheduler.priority,
    blkSigset: thread.mask,
    sas: {
      ssSp: stack.readBigUInt64LE(0),
      ssFlags: stack.readUInt32LE(8),
      ssSize: stack.readBigUInt64LE(16),
    },
    pdeathSig: pdeathsig,
    signalsP: dumpPendingSignals(tid, false),
    creds: dumpCredentials(thread, secbits),
    comm: readComm(pid, tid),
    rseqEntry:
      rseq.address === 0n
        ? undefined
        : { rseqAbiPointer: rseq.address, rseqAbiSize: rseq.size, signature: rseq.signature },
    attributes: [...attributes, ...dumpOutsideAttributes('thread', pid, tid)],
    waitDeadlineNs: deadlineOf(thread, monotonicOffsetNs),
  }
  return { mtype: Machine.X86_64, threadInfo, threadCore }
}

/** By the workload's CLOCK_MONOTONIC. */
function deadlineOf({ wait }: WorkloadThread, monotonicOffsetNs: bigint): bigint | undefined {
  if (wait === null || wait.deadlineNs === null) return undefined
  const deadlineNs = wait.deadlineNs + monotonicOffsetNs
  return deadlineNs > 0n ? deadlineNs : 0n
}

/** Registers with which another kernel resumes the thread. */
function movableRegisters({ process }: CaptureContext, thread: WorkloadThread): BigUint64Array {
  const { regs, time } = thread.movable
  if (time !== undefined) process.write(time.address, time.bytes)
  return regs
}

/**
 * State that the thread must set with its own calls. It comes before the credentials, which may remove the right to do
 * so.
 */
export function restoreThreadState(
  skeleton: SkeletonProcess,
  { tid, nsTid, core }: RestoredThread,
  tell: Tell,
): void {
  const { threadInfo, threadCore } = required(core)
  skeleton.queue(tid, 'set_tid_address', [threadInfo.clearTidAddr])
  if (threadCore.futexRla !== 0n) {
    skeleton.queue(tid, 'set_robust_list', [threadCore.futexRla, threadCore.futexRlaLen])
  }
  const { rseqEntry, sas } = threadCore
  if (rseqEntry !== undefined) {
    skeleton.queue(tid, 'rseq', [rseqEntry.rseqAbiPointer, rseqEntry.rseqAbiSize, 0, rseqEntry.signature])
  }
  if (sas !== undefined && (sas.ssFlags & ssDisable) === 0) {
    const stack = Buffer.alloc(stackBytes)
    stack.writeBigUInt64LE(sas.ssSp, 0)
    // SS_ONSTACK only reports where the stack pointer is. The kernel computes it again. SS_AUTODISARM is bit 31.
    stack.writeUInt32LE((sas.ssFlags & ~1) >>> 0, 8)
    stack.writeBigUInt64LE(sas.ssSize, 16)
    skeleton.queue(tid, 'sigaltstack', [skeleton.put(stack), 0])
  }
  restoreAttributes(skeleton, { tid, who: `thread ${nsTid}` }, threadCore.attributes, tell)
}

/** A change of user ids resets it, so it comes after the credentials (prctl(2), PR_SET_PDEATHSIG). */
export function restoreDeathSignal(skeleton: SkeletonProcess, tid: number, core: CoreEntry): void {
  const signal = required(core).threadCore.pdeathSig
  if (signal) skeleton.queue(tid, 'prctl', [prSetPdeathsig, signal, 0, 0, 0])
}

/**
 * Sets the scheduling, from outside. It comes after all calls of the threads: with it a thread may wait longer for a
 * processor.
 */
export function restoreScheduling(pid: number, { tid, nsTid, core }: RestoredThread, tell: Tell): void {
  const { schedPolicy, schedPrio = 0, schedNice, attributes } = required(core).threadCore
  const who = `thread ${nsTid}`
  const now = processes.getScheduler(tid)
  attempt(`scheduling policy ${schedPolicy} of ${who}`, tell, () => {
    if (schedPolicy === undefined || (schedPolicy === now.policy && schedPrio === now.priority)) return
    processes.setScheduler(tid, schedPolicy, schedPrio)
  })
  attempt(`nice value ${schedNice} of ${who}`, tell, () => {
    if (schedNice === undefined || schedNice === processes.getPriority(tid)) return
    processes.setPriority(tid, schedNice)
  })
  restoreOutsideAttributes(pid, { tid, who }, attributes, tell)
}

/** A process with another priority is slower, but not wrong. So a missing right is reported and ends nothing. */
function attempt(what: string, tell: Tell, act: () => void): void {
  try {
    act()
  } catch (error) {
    if (!isKernelError(error)) throw error
    tell({ what, reason: `${error.syscall} on the destination failed with ${error.code}` })
  }
}

/** Comes last: from here the thread continues as the workload when it is resumed. */
export function restoreRegisters(tid: number, core: CoreEntry): void {
  const { threadInfo, threadCore } = required(core)
  const xstate = ptrace.getXstate(tid)
  ptrace.setXstate(tid, fpregsToXstate(threadInfo.fpregs, xstateLayoutOf(xstate)))
  ptrace.setSigmask(tid, threadCore.blkSigset ?? 0n)
  ptrace.setRegs(tid, entryToRegs(threadInfo.gpregs))
}

/**
 * Gives the threads' waits the time that remains now. To be called as late as possible: the waits begin anew when the
 * threads run.
 *
 * @param isWritable false for a page that is still lazy. An honest source sends none such, and a write would block.
 */
export function renewWaits(
  { pid, memFd }: SkeletonProcess,
  threads: readonly RestoredThread[],
  isWritable: (page: number) => boolean,
): void {
  const waiting = threads.filter(({ core }) => core.threadCore?.waitDeadlineNs !== undefined)
  if (waiting.length === 0) return
  const offsetNs = monotonicOffset(pid)
  for (const { tid, core } of waiting) {
    const { threadInfo, threadCore } = required(core)
    const nowNs = processes.clockGettime(processes.CLOCK_MONOTONIC) + offsetNs
    const deadlineNs = threadCore.waitDeadlineNs as bigint
    const { regs, time } = withRemaining(entryToRegs(threadInfo.gpregs), deadlineNs, nowNs)
    if (time === undefined) ptrace.setRegs(tid, regs)
    else if (isWritable(pageOf(time.address)) && isWritable(pageOf(time.address + BigInt(timeBytes - 1)))) {
      memory.pwrite(memFd, time.address, time.bytes)
    }
  }
}

function required(core: CoreEntry): { threadInfo: ThreadInfoX86; threadCore: ThreadCoreEntry } {
  const { threadInfo, threadCore } = core
  if (threadInfo === undefined || threadCore === undefined) {
    throw new PageferryError('PROTOCOL', 'a core image lacks its thread')
  }
  return { threadInfo, threadCore }
}
