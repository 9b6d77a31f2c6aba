import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import type { KernelErrorLike } from '@pageferry/base'
import { type ExitStatus, fds } from '@pageferry/kernel'
import { readStat } from './proc/stat.js'

/** Whether a process or thread is gone or a zombie: it can no longer be read or stopped. */
export function hasExited(id: number): boolean {
  try {
    return ['Z', 'X'].includes(readStat(id).state)
  } catch {
    return true
  }
}

export type ExitOfProcess = ExitStatus | { kind: 'unknown' }

/**
 * How a process that is no child of ours has ended. /proc knows it until the parent has reaped the zombie, the pidfd afterwards
 * (Linux 6.15). unknown: it was reaped, and the kernel does not tell.
 */
export function exitOf(pid: number, pidfd: number): ExitOfProcess {
  const status = exitCodeOfZombie(pid) ?? fds.pidfdExitCode(pidfd)
  if (status < 0) return { kind: 'unknown' }
  const signal = status & 0x7f
  return signal === 0 ? { kind: 'exited', value: (status >> 8) & 0xff } : { kind: 'signaled', value: signal }
}

function exitCodeOfZombie(pid: number): number | null {
  try {
    const { state, exitCode } = readStat(pid)
    return state === 'Z' ? exitCode : null
  } catch {
    return null
  }
}

/** Time that a process of many GiB needs to end. */
const exitTakesMs = 2_000
const exitPollMs = 5

/**
 * Whether `error` came because the process has ended: each file of /proc fails in its own way then. The kernel reports
 * ESRCH as soon as the memory is gone, a moment before the process is a zombie.
 */
export async function exits(pid: number, error: KernelErrorLike): Promise<boolean> {
  const deadline = performance.now() + (error.code === 'ESRCH' ? exitTakesMs : 0)
  while (!hasExited(pid)) {
    if (performance.now() >= deadline) return false
    await sleep(exitPollMs)
  }
  return true
}
