import type { SaEntry, SiginfoEntry, SignalQueueEntry } from '@pageferry/images'
import { ptrace } from '@pageferry/kernel'
import type { ProcStatus } from '../proc/status.js'
import type { CallBatch } from '../remote/call-batch.js'
import type { SkeletonProcess } from '../remote/skeleton-process.js'

/** Signal actions and pending signals (sigaction(2), rt_sigqueueinfo(2)). */

/** SIGRTMAX; actions of SIGKILL and SIGSTOP cannot be set. */
const nrSignals = 64
const sigKill = 9
const sigStop = 19
const sigChld = 17
/** struct kernel_sigaction: handler, flags, restorer, mask */
const sigactionBytes = 32
const sigsetBytes = 8

/** @returns the answers, once the batch has run in a thread of the process */
export function askSignalActions({ sigCaught, sigIgnored }: ProcStatus, batch: CallBatch): () => SaEntry[] {
  const set = sigCaught | sigIgnored
  const entries: (() => SaEntry)[] = []
  for (let signal = 1; signal <= nrSignals; signal++) {
    if (signal === sigKill || signal === sigStop) continue
    // The kernel lists caught and ignored signals. All others are SIG_DFL, whose flags have no effect, except for
    // SIGCHLD: SA_NOCLDWAIT and SA_NOCLDSTOP decide about children.
    if ((set & (1n << BigInt(signal - 1))) === 0n && signal !== sigChld) {
      entries.push(() => ({ sigaction: 0n, flags: 0n, restorer: 0n, mask: 0n }))
      continue
    }
    const action = batch.room(sigactionBytes)
    const result = batch.add('rt_sigaction', signal, 0, action, sigsetBytes)
    entries.push(() => {
      result()
      const bytes = batch.read(action, sigactionBytes)
      return {
        sigaction: bytes.readBigUInt64LE(0),
        flags: bytes.readBigUInt64LE(8),
        restorer: bytes.readBigUInt64LE(16),
        mask: bytes.readBigUInt64LE(24),
      }
    })
  }
  return () => entries.map((entry) => entry())
}

export function restoreSignalActions(skeleton: SkeletonProcess, entries: SaEntry[]): void {
  let signal = 0
  for (const entry of entries) {
    do signal++
    while (signal === sigKill || signal === sigStop)
    if (entry.sigaction === 0n && entry.flags === 0n) continue
    const action = Buffer.alloc(sigactionBytes)
    action.writeBigUInt64LE(entry.sigaction, 0)
    action.writeBigUInt64LE(entry.flags, 8)
    action.writeBigUInt64LE(entry.restorer, 16)
    action.writeBigUInt64LE(entry.mask, 24)
    skeleton.queue(skeleton.pid, 'rt_sigaction', [signal, skeleton.put(action), 0, sigsetBytes])
  }
}

/** Pending signals of one thread, or (shared) of the process, with all of their data. */
export function dumpPendingSignals(tid: number, shared: boolean): SignalQueueEntry {
  return { signals: ptrace.peekSiginfo(tid, shared).map((siginfo) => ({ siginfo })) }
}

/**
 * Queues signals as they were queued on the source. A siginfo that the kernel made (si_code >= 0) may be sent only by a
 * thread to itself, so the thread does it. All signals are blocked in a skeleton's threads until the end.
 *
 * @param except signals that come from elsewhere
 */
export function restorePendingSignals(
  skeleton: SkeletonProcess,
  queue: SignalQueueEntry | null | undefined,
  target: { tid: number; nsPid: number; nsTid: number; shared: boolean },
  except: ReadonlySet<SiginfoEntry>,
): void {
  for (const entry of queue?.signals ?? []) {
    if (except.has(entry)) continue
    const { siginfo } = entry
    const signal = Buffer.from(siginfo).readInt32LE(0)
    const address = skeleton.put(siginfo)
    if (target.shared) {
      skeleton.queue(target.tid, 'rt_sigqueueinfo', [target.nsPid, signal, address])
    } else {
      skeleton.queue(target.tid, 'rt_tgsigqueueinfo', [target.nsPid, target.nsTid, signal, address])
    }
  }
}
