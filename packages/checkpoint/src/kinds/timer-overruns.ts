import { readFileSync } from 'node:fs'
import type { PosixTimerEntry, SiginfoEntry, SignalQueueEntry } from '@pageferry/images'
import { ptrace } from '@pageferry/kernel'
import type { CaptureContext } from '../capture-context.js'
import { CallBatch } from '../remote/call-batch.js'
import type { WorkloadThread } from '../remote/workload-thread.js'

/**
 * Overruns of periodic timers (timer_getoverrun(2)). A timer counts its expirations while its signal is pending, and tells the
 * count only when the signal is taken. So the dump takes such a signal and queues it again, with the count in it. On the
 * destination the timer is armed for the moment at which it has queued the signal: the kernel queues it again, and counts also
 * what has expired in the pause.
 */

const siTimer = -2
const siginfoBytes = 128
const firstRealtimeSignal = 32
const codeOffset = 8
const timerIdOffset = 16
const overrunOffset = 20
/** More signals of one number stay as they are. Each needs two calls and a siginfo in one batch. */
const maxSignals = 100
/** Other processes of the user count, too, and may queue signals at the same time. */
const spareSignals = 16

/** @returns the timer that has queued the signal, or null */
function timerOf(siginfo: Uint8Array): number | null {
  const info = Buffer.from(siginfo.buffer, siginfo.byteOffset, siginfo.byteLength)
  return info.readInt32LE(codeOffset) === siTimer ? info.readInt32LE(timerIdOffset) : null
}

function overrunOf(siginfo: Uint8Array): number {
  return Buffer.from(siginfo.buffer, siginfo.byteOffset, siginfo.byteLength).readInt32LE(overrunOffset)
}

/** Writes the overruns of periodic timers into their pending signals. To be called before the timers are dumped. */
export function settleOverruns(context: CaptureContext): void {
  const { process, status } = context
  for (const thread of process.threads) {
    const isLeader = thread === process.leader
    const own = thread.status.sigPending === 0n ? [] : ptrace.peekSiginfo(thread.tid, false)
    const shared = isLeader && status.sharedPending !== 0n ? ptrace.peekSiginfo(thread.tid, true) : []
    const periodic = periodicTimers(context, [...own, ...shared])
    const isCounted = (siginfo: Uint8Array): boolean => periodic.has(timerOf(siginfo) ?? -1)
    for (const signal of new Set([...own, ...shared].filter(isCounted).map(signalOf))) {
      const of = (queue: Uint8Array[]): number =>
        queue.filter((siginfo) => signalOf(siginfo) === signal).length
      requeue(context, thread, signal, of(own), of(shared))
    }
  }
}

function signalOf(siginfo: Uint8Array): number {
  return Buffer.from(siginfo.buffer, siginfo.byteOffset, siginfo.byteLength).readInt32LE(0)
}

function periodicTimers({ process, status }: CaptureContext, signals: Uint8Array[]): Set<number> {
  const ids = [...new Set(signals.flatMap((siginfo) => timerOf(siginfo) ?? []))].slice(0, maxSignals)
  if (ids.length === 0) return new Set()
  const batch = new CallBatch(process, process.leader, status)
  const asked = ids.map((id) => {
    const value = batch.room(32)
    return { id, value, result: batch.tryAdd('timer_gettime', id, value) }
  })
  batch.run()
  const isPeriodic = ({ value, result }: (typeof asked)[number]): boolean =>
    result() === 0n && batch.read(value, 16).some((byte) => byte !== 0)
  return new Set(asked.filter(isPeriodic).map(({ id }) => id))
}

/**
 * Takes all signals of a number and queues them again in the same order, in one table of calls. The thread runs the table to
 * its end also when its tracer dies, so none can be lost.
 */
function requeue(
  { process, status }: CaptureContext,
  thread: WorkloadThread,
  signal: number,
  nrOwn: number,
  nrShared: number,
): void {
  const nr = nrOwn + nrShared
  // Of a standard signal timers may have queued several, but we may not.
  if (signal < firstRealtimeSignal && nr > 1) return
  if (nr > maxSignals || !hasRoom(process.pid, nr)) return
  const batch = new CallBatch(process, thread, status)
  const set = batch.room(8)
  const noTime = batch.room(16)
  process.write(set, new Uint8Array(BigUint64Array.of(1n << BigInt(signal - 1)).buffer))
  process.write(noTime, new Uint8Array(16))
  const infos = Array.from({ length: nr }, () => batch.room(siginfoBytes))
  for (const info of infos) {
    process.write(info, refusedSiginfo)
    batch.tryAdd('rt_sigtimedwait', set, info, noTime, 8)
  }
  const nsTid = thread.status.nsPids.at(-1) ?? thread.tid
  // A thread's own signals are taken first (dequeue_signal in the kernel).
  for (const [i, info] of infos.entries()) {
    if (i < nrOwn) batch.tryAdd('rt_tgsigqueueinfo', status.nsTgid, nsTid, signal, info)
    else batch.tryAdd('rt_sigqueueinfo', status.nsTgid, signal, info)
  }
  batch.run()
}

/**
 * The kernel drops the signal of a timer that was set anew since, instead of giving it. Nothing may be queued in its place, so
 * the room holds a siginfo that is refused (E2BIG): an unknown si_code, with bytes behind the part that the kernel knows.
 */
const refusedSiginfo = Buffer.alloc(siginfoBytes, 0xff)
refusedSiginfo.writeInt32LE(0x7fff, codeOffset)

/** Of /proc/PID/status: "SigQ: 3/31371", signals that are queued and RLIMIT_SIGPENDING. */
function hasRoom(pid: number, nr: number): boolean {
  const [, queued, limit] = /^SigQ:\s*(\d+)\/(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1')) ?? []
  return Number(queued) + nr + spareSignals <= Number(limit)
}

/** Pending signals that their timers queue again, and the overruns of these timers by id. */
export interface TimerSignals {
  signals: Set<SiginfoEntry>
  overruns: Map<number, number>
}

/** Of several signals of one timer the last is its own; it has queued the others before a dump that came to nothing. */
export function signalsOfTimers(
  timers: readonly PosixTimerEntry[],
  queues: readonly (SignalQueueEntry | undefined)[],
): TimerSignals {
  const periodic = new Set(timers.filter(hasDeadlineAndInterval).map(({ itId }) => itId))
  const last = new Map<number, SiginfoEntry>()
  for (const entry of queues.flatMap((queue) => queue?.signals ?? [])) {
    const id = timerOf(entry.siginfo)
    if (id !== null && periodic.has(id)) last.set(id, entry)
  }
  const overruns = new Map([...last].map(([id, { siginfo }]) => [id, Math.max(0, overrunOf(siginfo))]))
  return { signals: new Set(last.values()), overruns }
}

function hasDeadlineAndInterval({ deadlineNs, isec, insec }: PosixTimerEntry): boolean {
  return deadlineNs !== undefined && (isec !== 0n || insec !== 0n)
}
