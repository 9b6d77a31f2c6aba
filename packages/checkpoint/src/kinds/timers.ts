import type { ItimerEntry, PosixTimerEntry, TaskTimersEntry } from '@pageferry/images'
import type { CaptureContext } from '../capture-context.js'
import type { Problem } from '../problems.js'
import { readTimers } from '../proc/timers.js'
import { CallBatch, maxBatchCalls } from '../remote/call-batch.js'
import type { SkeletonProcess } from '../remote/skeleton-process.js'

/** Interval timers (getitimer(2)) and POSIX timers (timer_create(2)). */

const itimerReal = 0
const itimerVirtual = 1
const itimerProf = 2
const prTimerCreateRestoreIds = 77
/** Ids are given out in ascending order. A process that has made and deleted more timers than this is refused. */
const maxTimerId = 100_000

export function checkTimers(pid: number): Problem[] {
  return readTimers(pid)
    .filter(({ id }) => id > maxTimerId)
    .map(({ id }) => ({ what: `POSIX timer ${id}`, reason: 'its id is too high to be created again' }))
}

/** POSIX timers in one batch: each needs two calls and one struct. */
const timersPerBatch = maxBatchCalls >> 1

/** @returns the answers, once the batch has run in a thread of the process */
export function askIntervalTimers(batch: CallBatch): () => Pick<TaskTimersEntry, 'real' | 'virt' | 'prof'> {
  const ask = (which: number): (() => ItimerEntry) => {
    const value = batch.room(32)
    const result = batch.add('getitimer', which, value)
    return () => {
      result()
      const bytes = batch.read(value, 32)
      return {
        isec: bytes.readBigUInt64LE(0),
        iusec: bytes.readBigUInt64LE(8),
        vsec: bytes.readBigUInt64LE(16),
        vusec: bytes.readBigUInt64LE(24),
      }
    }
  }
  const [real, virt, prof] = [ask(itimerReal), ask(itimerVirtual), ask(itimerProf)]
  return () => ({ real: real(), virt: virt(), prof: prof() })
}

/** There may be thousands of timers, so they have batches of their own. */
export function dumpPosixTimers({ pid, process, status }: CaptureContext): PosixTimerEntry[] {
  const timers = readTimers(pid)
  const entries: PosixTimerEntry[] = []
  for (let first = 0; first < timers.length; first += timersPerBatch) {
    const batch = new CallBatch(process, process.leader, status)
    const asked = timers.slice(first, first + timersPerBatch).map((timer) => {
      const value = batch.room(32)
      const result = batch.add('timer_gettime', timer.id, value)
      return { timer, value, result, overrun: batch.tryAdd('timer_getoverrun', timer.id) }
    })
    batch.run()
    for (const { timer, value, result, overrun } of asked) {
      result()
      const bytes = batch.read(value, 32)
      entries.push({
        itId: timer.id,
        clockId: timer.clockId,
        siSigno: timer.signal,
        itSigevNotify: timer.notify,
        sivalPtr: timer.value,
        overrun: Number(overrun() > 0n ? overrun() : 0n),
        isec: bytes.readBigUInt64LE(0),
        insec: bytes.readBigUInt64LE(8),
        vsec: bytes.readBigUInt64LE(16),
        vnsec: bytes.readBigUInt64LE(24),
        notifyThreadId: (timer.notify & 4) !== 0 ? timer.notifyTid : undefined,
      })
    }
  }
  return entries
}

/** Arms the timers last: the time of the restore counts against none. */
export function restoreTimers(skeleton: SkeletonProcess, timers: TaskTimersEntry): void {
  createPosixTimers(skeleton, timers.posix ?? [])
  const itimers: [number, ItimerEntry][] = [
    [itimerReal, timers.real],
    [itimerVirtual, timers.virt],
    [itimerProf, timers.prof],
  ]
  for (const [which, entry] of itimers) {
    // An interval without time left has expired. Its signal is pending, and the kernel would have started it again when
    // that is delivered.
    const expired = entry.vsec === 0n && entry.vusec === 0n
    const [sec, usec] = expired ? [entry.isec, entry.iusec] : [entry.vsec, entry.vusec]
    if (sec === 0n && usec === 0n) continue
    const spec = new BigUint64Array([entry.isec, entry.iusec, sec, usec])
    skeleton.queue(skeleton.pid, 'setitimer', [which, skeleton.put(new Uint8Array(spec.buffer)), 0])
  }
  for (const timer of timers.posix ?? []) {
    if (timer.vsec === 0n && timer.vnsec === 0n) continue
    const spec = new BigUint64Array([timer.isec, timer.insec, timer.vsec, timer.vnsec])
    skeleton.queue(skeleton.pid, 'timer_settime', [
      timer.itId,
      0,
      skeleton.put(new Uint8Array(spec.buffer)),
      0,
    ])
  }
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
      skeleton.call('timer_create', timer.clockId, skeleton.write(sigevent), idAt)
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
