import { readFileSync } from 'node:fs'

/** One POSIX timer of /proc/PID/timers (proc_pid_timers(5)). */
export interface ProcTimer {
  id: number
  signal: number
  /** sigval as a pointer-sized integer */
  value: bigint
  /** SIGEV_SIGNAL 0, SIGEV_NONE 1, SIGEV_THREAD 2; |4 when sent to a thread (SIGEV_THREAD_ID) */
  notify: number
  notifyTid: number
  clockId: number
}

const notifyNumbers: Record<string, number> = { signal: 0, none: 1, thread: 2 }

export function parseTimers(text: string): ProcTimer[] {
  const timers: ProcTimer[] = []
  const pattern = /ID: (\d+)\nsignal: (\d+)\/([0-9a-f]+)\nnotify: (\w+)\/(pid|tid)\.(\d+)\nClockID: (-?\d+)/g
  for (const m of text.matchAll(pattern)) {
    timers.push({
      id: Number(m[1]),
      signal: Number(m[2]),
      value: BigInt(`0x${m[3]}`),
      notify: notifyNumbers[m[4]] | (m[5] === 'tid' ? 4 : 0),
      notifyTid: Number(m[6]),
      clockId: Number(m[7]),
    })
  }
  return timers
}

export function readTimers(pid: number): ProcTimer[] {
  return parseTimers(readFileSync(`/proc/${pid}/timers`, 'utf8'))
}
