import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

/**
 * Identifies a process beyond a restart of this service. A pid alone is reused. With its start time (field 22 of
 * /proc/PID/stat, ticks since boot) and the boot it is unique.
 */
export interface ProcessIdentity {
  pid: number
  startTicks: string
  bootId: string
}

function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()
}

/** @returns undefined for a process that does not exist, or is a zombie and can do nothing any more. */
export function identifyProcess(pid: number): ProcessIdentity | undefined {
  let stat: string
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
  } catch {
    return undefined
  }
  // comm, in parentheses, may itself contain spaces and parentheses: fields count from the last one.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  if (fields[0] === 'Z' || fields[0] === 'X') return undefined
  return { pid, startTicks: fields[19], bootId: bootId() }
}

export function isAlive(identity: ProcessIdentity): boolean {
  const now = identifyProcess(identity.pid)
  return now !== undefined && now.startTicks === identity.startTicks && now.bootId === identity.bootId
}

/**
 * Kills exactly this process, if it still exists, and waits until it can act no more.
 * @returns false when it still exists after `timeoutMs` (it hangs inside the kernel).
 */
export async function killAndWait(identity: ProcessIdentity, timeoutMs: number): Promise<boolean> {
  const deadline = Date.now() + timeoutMs
  for (;;) {
    if (!isAlive(identity)) return true
    try {
      process.kill(identity.pid, 'SIGKILL')
    } catch {
      // it ended between the two lines
    }
    if (Date.now() > deadline) return false
    await sleep(5)
  }
}
