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

/** A pid comes again: together with the start time it names a process. */
export interface ProcessName {
  pid: number
  /** Ticks since boot. */
  startTime: string
}

/** Registration of an address space with what tracks writes. Ends with descriptors of this process. */
export const tracker: Hold<{ asId: number }, Tracker> = {
  name: 'tracker',
  release: (held) => held.close(),
  recover: () => {},
}

/** Every thread in a ptrace stop, perhaps in injected code. The kernel resumes them when the tracer dies, and the code stays. */
export const stop: Hold<ProcessName, StoppedProcess> = {
  name: 'stop',
  release: (stopped) => unlessGone(stopped.pid, () => stopped.resume()),
  recover: (process) => ifThere(process, () => removeLeftovers(process.pid, undefined)),
}

/** Area for arguments and results of injected calls. */
export const scratch: Hold<ProcessName & { page: number }, StoppedProcess> = {
  name: 'scratch',
  release: (stopped) => unlessGone(stopped.pid, () => stopped.unmapScratch()),
  recover: ({ page, ...process }) => ifThere(process, () => removeLeftovers(process.pid, page)),
}

/**
 * Everything that the source does to a workload or its host, in the order in which it is taken. The cgroup is undone first:
 * nothing can be injected into a workload that it freezes.
 */
export function openHolds(stateDir: string): Holds {
  return new Holds(`${stateDir}/holds`, [tracker, stop, scratch, cgroupHold])
}

function ifThere({ pid, startTime }: ProcessName, act: () => void): void {
  unlessGone(pid, () => {
    if (String(readStat(pid).startTime) === startTime) act()
  })
}

/** ESRCH comes as soon as the memory is gone, a moment before the process is a zombie. */
function unlessGone(pid: number, act: () => void): void {
  try {
    act()
  } catch (error) {
    if (!isKernelError(error, 'ESRCH') && !hasExited(pid)) throw error
  }
}
