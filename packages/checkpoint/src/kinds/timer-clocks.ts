import type { Problem } from '../problems.js'
import type { ProcTimer } from '../proc/timers.js'

/** Clocks of POSIX timers (clock_getres(2)). */

/** CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM, CLOCK_TAI */
const wallClocks = new Set([0, 1, 7, 8, 9, 11])

/**
 * A clock of processor time. Its number is negative: ~id << 3, with 4 for a thread's, and with the kind of count. Id 0 is the
 * process or thread that has created the timer (include/linux/posix-timers_types.h).
 */
interface CpuClock {
  id: number
  ofThread: boolean
  /** 0 user and system time, 1 user time, 2 the scheduler's count; 3: no such clock, but that of a device */
  counts: number
}

function cpuClock(clockId: number): CpuClock | null {
  if (clockId >= 0) return null
  return { id: ~(clockId >> 3), ofThread: (clockId & 4) !== 0, counts: clockId & 3 }
}

export function countsProcessorTime(clockId: number): boolean {
  return clockId < 0
}

/**
 * @param nsTids of the process; the first is its pid
 * @returns why the clock cannot be given to a timer on the destination
 */
export function clockProblem(
  { clockId, notifyTid, notify }: ProcTimer,
  nsTids: readonly number[],
): string | null {
  const clock = cpuClock(clockId)
  if (clock === null) return wallClocks.has(clockId) ? null : `its clock (${clockId}) is unknown`
  if (clock.counts === 3) return 'its clock is a device'
  if (!clock.ofThread) {
    return clock.id === 0 || clock.id === nsTids[0]
      ? null
      : 'its clock is the processor time of another process'
  }
  if (clock.id !== 0) return nsTids.includes(clock.id) ? null : 'its clock is that of a thread that has ended'
  if (nsTids.length === 1 || signalsThread({ notify, notifyTid })) return null
  return 'the kernel does not show of which thread its CLOCK_THREAD_CPUTIME_ID is'
}

/**
 * Names the thread in a number that stands for "the thread that created the timer". A timer that signals one thread is taken
 * for that thread's own: a profiler makes such a timer in each thread.
 */
export function explicitClock(timer: ProcTimer, nsTids: readonly number[]): number {
  const clock = cpuClock(timer.clockId)
  if (clock === null || !clock.ofThread || clock.id !== 0) return timer.clockId
  const tid = signalsThread(timer) ? timer.notifyTid : nsTids[0]
  return (~tid << 3) | 4 | clock.counts
}

const SIGEV_THREAD_ID = 4

function signalsThread({ notify }: Pick<ProcTimer, 'notify' | 'notifyTid'>): boolean {
  return (notify & SIGEV_THREAD_ID) !== 0
}

export function clockProblems(timers: readonly ProcTimer[], nsTids: readonly number[]): Problem[] {
  return timers.flatMap((timer) => {
    const reason = clockProblem(timer, nsTids)
    return reason === null ? [] : [{ what: `POSIX timer ${timer.id}`, reason }]
  })
}
