import type { ItimerEntry, PosixTimerEntry } from '@pageferry/images'
import { processes } from '@pageferry/kernel'
import { type Clocks, clocksOf } from './clocks.js'

/** When timers expire on the destination. All times in ns. */

const CLOCK_BOOTTIME_ALARM = 9
const CLOCK_TAI = 11

/** The workload's own clocks, and CLOCK_REALTIME. */
export interface Now extends Clocks {
  wallNs: bigint
}

export function nowOf(pid: number): Now {
  return { ...clocksOf(pid), wallNs: processes.clockGettime(processes.CLOCK_REALTIME) }
}

export interface Armed {
  /** By the timer's clock, or from now on. */
  isAbsolute: boolean
  ns: bigint
}

type ArmedTimer = Pick<PosixTimerEntry, 'clockId' | 'vsec' | 'vnsec' | 'isec' | 'insec' | 'deadlineNs'>

/**
 * An absolute time in the past makes a periodic timer count what it has missed, and keeps its phase. CLOCK_MONOTONIC and
 * CLOCK_BOOTTIME go on in the workload's time namespace, so they always get one.
 *
 * The kernel does not show whether a timer of CLOCK_REALTIME was armed for a time of day or for a time from then on, and treats
 * the two differently when the clock is set. It gets the same duration, since hosts may differ in their time of day.
 *
 * @param overrun of a timer whose signal is pending: how often it has expired since it queued that
 * @returns null: the timer is not armed
 */
export function armedFor(timer: ArmedTimer, overrun: number | undefined, now: Now): Armed | null {
  const leftNs = timer.vsec * 1_000_000_000n + timer.vnsec
  const { deadlineNs } = timer
  if (deadlineNs === undefined) return leftNs === 0n ? null : { isAbsolute: false, ns: leftNs }
  const intervalNs = timer.isec * 1_000_000_000n + timer.insec
  const firstNs = overrun === undefined ? deadlineNs : deadlineNs - BigInt(overrun + 1) * intervalNs
  switch (timer.clockId) {
    case processes.CLOCK_MONOTONIC:
      return absolute(firstNs)
    case processes.CLOCK_BOOTTIME:
    case CLOCK_BOOTTIME_ALARM:
      return absolute(firstNs + now.boottimeNs - now.monotonicNs)
  }
  const dueNs = firstNs - now.monotonicNs
  if (dueNs > 0n) return { isAbsolute: false, ns: dueNs }
  const nowNs = timer.clockId === CLOCK_TAI ? processes.clockGettime(CLOCK_TAI) : now.wallNs
  return absolute(nowNs + dueNs)
}

/** 0 would disarm the timer. */
export function absolute(ns: bigint): Armed {
  return { isAbsolute: true, ns: ns > 0n ? ns : 1n }
}

/** When ITIMER_REAL sends SIGALRM next, and whether it should have done so in the pause. */
export interface NextAlarm {
  hasExpired: boolean
  /** In us; 0: never. */
  leftUs: bigint
}

export function nextAlarm(
  { isec, iusec, vsec, vusec, deadlineNs }: ItimerEntry,
  monotonicNs: bigint,
): NextAlarm {
  const intervalUs = isec * 1_000_000n + iusec
  const valueUs = vsec * 1_000_000n + vusec
  // An interval without time left has expired. Its signal is pending, and the kernel would have started it again when
  // that is delivered.
  if (valueUs === 0n) return { hasExpired: false, leftUs: intervalUs }
  if (deadlineNs === undefined) return { hasExpired: false, leftUs: valueUs }
  const leftNs = deadlineNs - monotonicNs
  if (leftNs > 0n) return { hasExpired: false, leftUs: (leftNs + 999n) / 1000n }
  if (intervalUs === 0n) return { hasExpired: false, leftUs: 1n }
  // setitimer knows no past: the signal is queued for it, and the timer goes on in its phase.
  return { hasExpired: true, leftUs: intervalUs - ((-leftNs / 1000n) % intervalUs) }
}
