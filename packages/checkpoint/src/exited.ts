import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import type { KernelErrorLike } from '@pageferry/base'
import { readStat } from './proc/stat.js'

/** A process or thread that is gone, or a zombie: nothing of it can be read or stopped any more. */
export function hasExited(id: number): boolean {
  try {
    return ['Z', 'X'].includes(readStat(id).state)
  } catch {
    return true
  }
}

/** A process of many GiB takes its time to end. */
const exitTakesMs = 2_000
const exitPollMs = 5

/**
 * Whether `error` came because the process has ended: each file of /proc fails in its own way then. ESRCH comes as soon as
 * the memory is gone, which is a moment before the process is a zombie.
 */
export async function exits(pid: number, error: KernelErrorLike): Promise<boolean> {
  const deadline = performance.now() + (error.code === 'ESRCH' ? exitTakesMs : 0)
  while (!hasExited(pid)) {
    if (performance.now() >= deadline) return false
    await sleep(exitPollMs)
  }
  return true
}
