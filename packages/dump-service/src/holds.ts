import { isKernelError } from '@pageferry/base'
import {
  cgroupHold,
  hasExited,
  readStat,
  removeLeftovers,
  type StoppedProcess,
  type Tracker,
} from '@pageferry/checkpoint'
import { type Hold, Holds } from '@pageferry/service/worker'

/** Names a process: pids are reused, so the start time belongs to the name. */
export interface ProcessName {
  pid: number
  /** In ticks since boot. */
  startTime: string
}

/** The registration of an address space with its tracker. It ends with the descriptors of this process. */
export const tracker: Hold<{ asId: number }, Tracker> = {
  name: 'tracker',
  release: (held) => held.close(),
  recover: () => {},
}

/**
 * Every thread is in a ptrace stop, perhaps in injected code. If the tracer dies, the kernel resumes them and the code
 * stays.
 */
export const stop: Hold<ProcessName, StoppedProcess> = {
  name: 'stop',
  release: (stopped) => unlessGone(stopped.pid, () => stopped.resume()),
  recover: (process) => ifThere(process, () => removeLeftovers(process.pid, undefined)),
}

/** The area for arguments and results of injected calls. */
export const scratch: Hold<ProcessName & { page: number }, StoppedProcess> = {
  name: 'scratch',
  release: (stopped) => unlessGone(stopped.pid, () => stopped.unmapScratch()),
  recover: ({ page, ...process }) => ifThere(process, () => removeLeftovers(process.pid, page)),
}

/**
 * Everything that the source does to a workload or its host, in the order of taking. The cgroup is undone first: code
 * cannot be injected into a workload that it freezes.
 */
export function openHolds(stateDir: string): Holds {
  return new Holds(`${stateDir}/holds`, [tracker, stop, scratch, cgroupHold])
}

function ifThere({ pid, startTime }: ProcessName, act: () => void): void {
  unlessGone(pid, () => {
    if (String(readStat(pid).startTime) === startTime) act()
  })
}

/** The kernel reports ESRCH as soon as the memory is gone, a moment before the process is a zombie. */
function unlessGone(pid: number, act: () => void): void {
  try {
    act()
  } catch (error) {
    if (!isKernelError(error, 'ESRCH') && !hasExited(pid)) throw error
  }
}
