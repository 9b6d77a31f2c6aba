import { PageferryError } from '@pageferry/base'
import type { ItimerEntry, PosixTimerEntry, TaskTimersEntry } from '@pageferry/images'
import { processes } from '@pageferry/kernel'
import type { CaptureContext } from '../capture-context.js'
import type { Problem } from '../problems.js'
import { readNsTids } from '../proc/tasks.js'
import { readTimers } from '../proc/timers.js'
import { CallBatch, maxBatchCalls } from '../remote/call-batch.js'
import type { SkeletonProcess } from '../remote/skeleton-process.js'
import { clockProblems, countsProcessorTime, explicitClock } from './timer-clocks.js'
import { type Armed, armedFor, nextAlarm, nowOf } from './timer-deadlines.js'

/**
 * Interval timers (getitimer(2)) and POSIX timers (timer_create(2)). Their deadlines stay where they are: those of the images are
 * by the workload's CLOCK_MONOTONIC, which goes on in the pause. Timers of processor time get what remained.
 */

const itimerReal = 0
const itimerVirtual = 1
const itimerProf = 2
const prTimerCreateRestoreIds = 77
/** Ids are given out in ascending order. A process that has made and deleted more timers than this is refused. */
const maxTimerId = 100_000

export function checkTimers(pid: number): Problem[] {
  const timers = readTimers(pid)
  if (timers.length === 0) return []
  const tooHigh = timers
    .filter(({ id }) => id > maxTimerId)
    .map(({ id }) => ({ what: `POSIX timer ${id}`, reason: 'its id is too high to be created again' }))
  return [...tooHigh, ...clockProblems(timers, readNsTids(pid))]
}

/** POSIX timers in one batch: each needs three calls. */
const timersPerBatch = Math.floor(maxBatchCalls / 3)
/** struct itimerval, struct itimerspec: interval, then value */
const itimerBytes = 32
const timespecBytes = 16

/** Asks for CLOCK_MONOTONIC right behind a question about a timer. @returns when that expires next */
function askDeadline(batch: CallBatch): (leftNs: bigint) => bigint {
  const now = batch.room(timespecBytes)
  const result = batch.add('clock_gettime', processes.CLOCK_MONOTONIC, now)
  return (leftNs) => {
    result()
    const bytes = batch.read(now, timespecBytes)
    return nsOf(bytes.readBigUInt64LE(0), bytes.readBigUInt64LE(8)) + leftNs
  }
}

function nsOf(seconds: bigint, ns: bigint): bigint {
  return seconds * 1_000_000_000n + ns
}

/** @returns the answers, once the batch has run in a thread of the process */
export function askIntervalTimers(batch: CallBatch): () => Pick<TaskTimersEntry, 'real' | 'virt' | 'prof'> {
  const ask = (which: number): (() => ItimerEntry) => {
    const value = batch.room(itimerBytes)
    const result = batch.add('getitimer', which, value)
    return () => {
      result()
      const bytes = batch.read(value, itimerBytes)
      return {
        isec: bytes.readBigUInt64LE(0),
        iusec: bytes.readBigUInt64LE(8),
        vsec: bytes.readBigUInt64LE(16),
        vusec: bytes.readBigUInt64LE(24),
      }
    }
  }
  const real = ask(itimerReal)
  const deadline = askDeadline(batch)
  const [virt, prof] = [ask(itimerVirtual), ask(itimerProf)]
  return () => {
    const timer = real()
    // The kernel has cut off a part of a microsecond.
    const leftNs = nsOf(timer.vsec, (timer.vusec + 1n) * 1000n)
    const isArmed = timer.vsec !== 0n || timer.vusec !== 0n
    return {
      real: isArmed ? { ...timer, deadlineNs: deadline(leftNs) } : timer,
      virt: virt(),
      prof: prof(),
    }
  }
}

/** There may be thousands of timers, so they have batches of their own. */
export function dumpPosixTimers({ pid, process, status }: CaptureContext): PosixTimerEntry[] {
  const timers = readTimers(pid)
  if (timers.length === 0) return []
  const nsTids = process.threads.map(({ tid, status: { nsPids } }) => nsPids.at(-1) ?? tid)
  const [problem] = clockProblems(timers, nsTids)
  if (problem !== undefined)
    throw new PageferryError('WORKLOAD_CHANGED', `${problem.what}: ${problem.reason}`)
  const entries: PosixTimerEntry[] = []
  for (let first = 0; first < timers.length; first += timersPerBatch) {
    const batch = new CallBatch(process, process.leader, status)
    const asked = timers.slice(first, first + timersPerBatch).map((timer) => {
      const value = batch.room(itimerBytes)
      const result = batch.add('timer_gettime', timer.id, value)
      const deadline = askDeadline(batch)
      return { timer, value, result, deadline, overrun: batch.tryAdd('timer_getoverrun', timer.id) }
    })
    batch.run()
    for (const { timer, value, result, deadline, overrun } of asked) {
      result()
      const bytes = batch.read(value, itimerBytes)
      const leftNs = nsOf(bytes.readBigUInt64LE(16), bytes.readBigUInt64LE(24))
      const hasDeadline = leftNs !== 0n && !countsProcessorTime(timer.clockId)
      entries.push({
        itId: timer.id,
        clockId: explicitClock(timer, nsTids) >>> 0,
        siSigno: timer.signal,
        itSigevNotify: timer.notify,
        sivalPtr: timer.value,
        overrun: Number(overrun() > 0n ? overrun() : 0n),
        isec: bytes.readBigUInt64LE(0),
        insec: bytes.readBigUInt64LE(8),
        vsec: bytes.readBigUInt64LE(16),
        vnsec: bytes.readBigUInt64LE(24),
        notifyThreadId: (timer.notify & 4) !== 0 ? timer.notifyTid : undefined,
        deadlineNs: hasDeadline ? deadline(leftNs) : undefined,
      })
    }
  }
  return entries
}

const SIGALRM = 14
const siKernel = 0x80
const siginfoBytes = 128
const TIMER_ABSTIME = 1

/**
 * Arms the timers last: the time of the restore counts against none.
 *
 * @param nsPid the workload's own pid
 * @param overruns of timers whose signal is pending, by id (timer-overruns.ts)
 */
export function restoreTimers(
  skeleton: SkeletonProcess,
  nsPid: number,
  timers: TaskTimersEntry,
  overruns: ReadonlyMap<number, number>,
): void {
  createPosixTimers(skeleton, timers.posix)
  const { pid } = skeleton
  const now = nowOf(pid)
  const set = (which: number, { isec, iusec }: ItimerEntry, sec: bigint, usec: bigint): void => {
    if (sec === 0n && usec === 0n) return
    const spec = new BigUint64Array([isec, iusec, sec, usec])
    skeleton.queue(pid, 'setitimer', [which, skeleton.put(new Uint8Array(spec.buffer)), 0])
  }
  const { real, virt, prof } = timers
  const { hasExpired, leftUs } = nextAlarm(real, now.monotonicNs)
  if (hasExpired) {
    const siginfo = Buffer.alloc(siginfoBytes)
    siginfo.writeInt32LE(SIGALRM, 0)
    siginfo.writeInt32LE(siKernel, 8)
    skeleton.queue(pid, 'rt_sigqueueinfo', [nsPid, SIGALRM, skeleton.put(siginfo)])
  }
  set(itimerReal, real, leftUs / 1_000_000n, leftUs % 1_000_000n)
  set(itimerVirtual, virt, virt.vsec, virt.vusec)
  set(itimerProf, prof, prof.vsec, prof.vusec)
  for (const timer of timers.posix) {
    const armed = armedFor(timer, overruns.get(timer.itId), now)
    if (armed !== null) setTimer(skeleton, timer, armed)
  }
}

function setTimer(skeleton: SkeletonProcess, timer: PosixTimerEntry, { isAbsolute, ns }: Armed): void {
  const spec = new BigUint64Array([timer.isec, timer.insec, ns / 1_000_000_000n, ns % 1_000_000_000n])
  skeleton.queue(skeleton.pid, 'timer_settime', [
    timer.itId,
    isAbsolute ? TIMER_ABSTIME : 0,
    skeleton.put(new Uint8Array(spec.buffer)),
    0,
  ])
}

function createPosixTimers(skeleton: SkeletonProcess, timers: PosixTimerEntry[]): void {
  if (timers.length === 0) return
  // Linux 6.15 creates a timer with a given id. Before, ids are counted up to the wanted one.
  const exact = skeleton.batch([{ name: 'prctl', args: [prTimerCreateRestoreIds, 1, 0, 0, 0] }])[0] === 0n
  let next = 0
  for (const timer of [...timers].sort((a, b) => a.itId - b.itId)) {
    // struct sigevent: sigev_value, sigev_signo, sigev_notify, sigev_notify_thread_id
    const sigevent = Buffer.alloc(64)
    sigevent.writeBigUInt64LE(timer.sivalPtr, 0)
    sigevent.writeInt32LE(timer.siSigno, 8)
    sigevent.writeInt32LE(timer.itSigevNotify, 12)
    sigevent.writeInt32LE(timer.notifyThreadId ?? 0, 16)
    const create = (): number => {
      const idAt = skeleton.write(Buffer.from(new Int32Array([timer.itId]).buffer), 128)
      skeleton.call('timer_create', timer.clockId | 0, skeleton.write(sigevent), idAt)
      return Buffer.from(skeleton.read(idAt, 4)).readInt32LE(0)
    }
    for (;;) {
      const id = create()
      if (id === timer.itId) break
      if (exact || id > timer.itId || next++ > maxTimerId) {
        throw new Error(`POSIX timer ${timer.itId} cannot be created: the kernel gave id ${id}`)
      }
      skeleton.call('timer_delete', id)
    }
  }
  if (exact) skeleton.call('prctl', prTimerCreateRestoreIds, 0, 0, 0, 0)
}
