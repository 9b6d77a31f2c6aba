import { readFileSync } from 'node:fs'

/** RLIM_INFINITY of the 64-bit calls */
export const unlimited = 0xffff_ffff_ffff_ffffn

export interface Limit {
  soft: bigint
  hard: bigint
}

/**
 * /proc/PID/limits, one line per resource in the order of their numbers, RLIMIT_CPU first (proc_pid_limits(5)). Unlike
 * prlimit(2) it shows the limits of another user's process without CAP_SYS_RESOURCE.
 */
function parseLimits(text: string): Limit[] {
  const value = (word: string): bigint => (word === 'unlimited' ? unlimited : BigInt(word))
  return [...text.matchAll(/^Max .*? {2,}(unlimited|\d+) +(unlimited|\d+)/gm)].map(([, soft, hard]) => ({
    soft: value(soft),
    hard: value(hard),
  }))
}

export function readLimits(pid: number): Limit[] {
  return parseLimits(readFileSync(`/proc/${pid}/limits`, 'latin1'))
}
