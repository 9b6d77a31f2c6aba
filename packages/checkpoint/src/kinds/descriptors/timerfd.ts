import { FdType, type TimerfdEntry } from '@pageferry/images'
import { fds, processes } from '@pageferry/kernel'
import { type FdInfo, fdinfoLines, readFdInfo } from '../../proc/fdinfo.js'
import { type Armed, absolute, armedFor, type Now, nowOf } from '../timer-deadlines.js'
import type { FdKind } from './kind.js'
import { dumpSignal } from './signal-owner.js'

/**
 * Timers with a descriptor (timerfd_create(2)). They are armed for the time at which the first expiration came that was not
 * read, so the kernel counts that and all later ones, also those of the pause.
 */

const { O_CLOEXEC, O_NONBLOCK } = fds
const TFD_TIMER_ABSTIME = 1
const TFD_TIMER_CANCEL_ON_SET = 2
/** CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME */
const clocks = ['0', '1', '7']

/** For example "it_value: (3, 49406829)". */
function timeOf(info: FdInfo, name: string): [seconds: bigint, ns: bigint] {
  const [, seconds = '0', ns = '0'] = /^\((\d+), (\d+)\)$/.exec(fdinfoLines(info, name)[0] ?? '') ?? []
  return [BigInt(seconds), BigInt(ns)]
}

/** Armed for a time of day, and not for a time from then on. */
function isTimeOfDay({ clockid, settimeFlags }: Pick<TimerfdEntry, 'clockid' | 'settimeFlags'>): boolean {
  return clockid === processes.CLOCK_REALTIME && (settimeFlags & TFD_TIMER_ABSTIME) !== 0
}

/** @returns null: the timer is not armed */
function armed(entry: TimerfdEntry, now: Now): Armed | null {
  const { clockid: clockId, ticks, deadlineNs } = entry
  // A single expiration that was not read.
  if (deadlineNs === undefined) return ticks > 0n ? absolute(1n) : null
  if (!isTimeOfDay(entry)) {
    return armedFor({ ...entry, clockId }, ticks > 0n ? Number(ticks) - 1 : undefined, now)
  }
  return absolute(deadlineNs - ticks * (entry.isec * 1_000_000_000n + entry.insec))
}

export const timerfd: FdKind<'tfd'> = {
  name: 'timerfd',
  type: FdType.TIMERFD,
  field: 'tfd',

  matches: ({ target }) => target === 'anon_inode:[timerfd]',

  outside: () => ({}),

  check({ info }) {
    const [clock] = fdinfoLines(info, 'clockid')
    return clocks.includes(clock) ? null : `a timerfd with the clock ${clock}, which the destination may lack`
  },

  dump({ info: before, copy }, id, { monotonicOffsetNs }): TimerfdEntry {
    fds.timerfdUpdate(copy)
    const info = readFdInfo(process.pid, copy)
    const [vsec, vnsec] = timeOf(info, 'it_value')
    const [isec, insec] = timeOf(info, 'it_interval')
    const clockid = Number(fdinfoLines(info, 'clockid')[0])
    const settimeFlags = Number.parseInt(fdinfoLines(info, 'settime flags')[0] ?? '0', 8)
    const now = isTimeOfDay({ clockid, settimeFlags })
      ? processes.clockGettime(processes.CLOCK_REALTIME)
      : processes.clockGettime(processes.CLOCK_MONOTONIC) + monotonicOffsetNs
    return {
      id,
      flags: before.flags & ~O_CLOEXEC,
      fown: dumpSignal(before, copy),
      clockid,
      ticks: BigInt(fdinfoLines(info, 'ticks')[0] ?? 0),
      settimeFlags,
      vsec,
      vnsec,
      isec,
      insec,
      deadlineNs: vsec === 0n && vnsec === 0n ? undefined : now + vsec * 1_000_000_000n + vnsec,
    }
  },

  create({ clockid, flags }) {
    return fds.timerfd(clockid, flags & O_NONBLOCK)
  },

  afterwards(entry, fd, skeleton) {
    const at = armed(entry, nowOf(skeleton.pid))
    if (at === null) return
    const cancel = isTimeOfDay(entry) ? entry.settimeFlags & TFD_TIMER_CANCEL_ON_SET : 0
    const flags = at.isAbsolute ? TFD_TIMER_ABSTIME | cancel : 0
    const spec = BigUint64Array.of(entry.isec, entry.insec, at.ns / 1_000_000_000n, at.ns % 1_000_000_000n)
    skeleton.queue(skeleton.pid, 'timerfd_settime', [fd, flags, skeleton.put(new Uint8Array(spec.buffer)), 0])
  },
}
