import { readFileSync, readlinkSync } from 'node:fs'
import type { TimensEntry } from '@pageferry/images'
import { processes } from '@pageferry/kernel'

/** CLOCK_MONOTONIC and CLOCK_BOOTTIME as a process sees them: time_namespaces(7). All in ns. */

export interface Clocks {
  monotonicNs: bigint
  boottimeNs: bigint
}

/** Offsets of a process's time namespace against the host's clocks. */
function offsetsOf(pid: number | 'self'): Clocks {
  let text: string
  try {
    text = readFileSync(`/proc/${pid}/timens_offsets`, 'utf8')
  } catch (error) {
    // A kernel without time namespaces has no offsets.
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    return { monotonicNs: 0n, boottimeNs: 0n }
  }
  const offset = (name: string): bigint => {
    const m = new RegExp(`^${name}\\s+(-?\\d+)\\s+(\\d+)$`, 'm').exec(text)
    return m === null ? 0n : BigInt(m[1]) * 1_000_000_000n + BigInt(m[2])
  }
  return { monotonicNs: offset('monotonic'), boottimeNs: offset('boottime') }
}

/** The clocks as the process reads them now: ours, corrected by the difference of the offsets. */
export function clocksOf(pid: number): Clocks {
  const theirs = offsetsOf(pid)
  const ours = offsetsOf('self')
  return {
    monotonicNs: processes.clockGettime(processes.CLOCK_MONOTONIC) - ours.monotonicNs + theirs.monotonicNs,
    boottimeNs: processes.clockGettime(processes.CLOCK_BOOTTIME) - ours.boottimeNs + theirs.boottimeNs,
  }
}

/** CLOCK_MONOTONIC of a process minus ours. */
export function monotonicOffset(pid: number): bigint {
  return offsetsOf(pid).monotonicNs - offsetsOf('self').monotonicNs
}

/** The clocks of a workload and, read at the same instant, the kernel's own (those of the first time namespace). */
export interface ClockReading extends Clocks {
  kernelMonotonicNs: bigint
  kernelBoottimeNs: bigint
}

export function readClocks(pid: number): ClockReading {
  const clocks = clocksOf(pid)
  const offsets = offsetsOf(pid)
  return {
    ...clocks,
    kernelMonotonicNs: clocks.monotonicNs - offsets.monotonicNs,
    kernelBoottimeNs: clocks.boottimeNs - offsets.boottimeNs,
  }
}

/**
 * Computes the offsets (absolute, as timens_offsets wants them) with which a process here reads the workload's clocks.
 * On the same kernel they stay as they were. Between two kernels, `workload` must be read after this host's clocks
 * reached `before`. So no clock goes backwards, and each gains at most the round trip.
 */
export function offsetsFor(workload: ClockReading, before: Clocks, sameKernel: boolean): Clocks {
  if (sameKernel) {
    return {
      monotonicNs: workload.monotonicNs - workload.kernelMonotonicNs,
      boottimeNs: workload.boottimeNs - workload.kernelBoottimeNs,
    }
  }
  const ours = offsetsOf('self')
  return {
    monotonicNs: workload.monotonicNs - before.monotonicNs + ours.monotonicNs,
    boottimeNs: workload.boottimeNs - before.boottimeNs + ours.boottimeNs,
  }
}

/** Whether a process without a time namespace of its own has these offsets here. */
export function areOwnOffsets(offsets: Clocks): boolean {
  const ours = offsetsOf('self')
  return ours.monotonicNs === offsets.monotonicNs && ours.boottimeNs === offsets.boottimeNs
}

/** The two clocks of this process, as input for `offsetsFor`. */
export function ownClocks(): Clocks {
  return {
    monotonicNs: processes.clockGettime(processes.CLOCK_MONOTONIC),
    boottimeNs: processes.clockGettime(processes.CLOCK_BOOTTIME),
  }
}

export function toTimens(clocks: Clocks): TimensEntry {
  const split = (ns: bigint): { tvSec: bigint; tvNsec: bigint } => ({
    tvSec: ns / 1_000_000_000n,
    tvNsec: ns % 1_000_000_000n,
  })
  return { monotonic: split(clocks.monotonicNs), boottime: split(clocks.boottimeNs) }
}

/** Boot id of the running kernel: equal on both sides when source and destination share one. */
export function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
}

export function timeNamespace(pid: number | 'self'): string {
  return readlinkSync(`/proc/${pid}/ns/time`)
}
