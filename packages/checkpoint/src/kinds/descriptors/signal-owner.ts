import type { FownEntry } from '@pageferry/images'
import { fds } from '@pageferry/kernel'
import type { FdInfo } from '../../proc/fdinfo.js'

/**
 * The process that gets SIGIO from an open file description (fcntl(2), F_SETOWN), which is not moved yet, and the signal that
 * it gets instead (F_SETSIG). The signal also counts for leases.
 */

const { O_PATH, O_ASYNC } = fds

/** F_SETOWN and F_SETSIG were never called. */
export const noOwner: FownEntry = { uid: 0, euid: 0, signum: 0, pidType: 0, pid: 0 }

/** For a description without an owner. Signal 0 stands for SIGIO. */
export function dumpSignal(info: FdInfo, copy: number): FownEntry {
  const signum = (info.flags & O_PATH) === 0 ? fds.fcntl(copy, fds.F_GETSIG) : 0
  return { ...noOwner, signum }
}

/** @throws EINVAL for an impossible signal */
export function restoreSignal(fd: number, fown: FownEntry | undefined): void {
  if (fown !== undefined && fown.signum !== 0) fds.fcntl(fd, fds.F_SETSIG, fown.signum)
}

export const signalDriven =
  'a process gets signals from it (F_SETOWN, O_ASYNC, F_NOTIFY), and would get none there'

/** Directory notification also makes its user the owner (fcntl(2)). A process group as owner reads as an error. */
export function sendsSignals(info: FdInfo, copy: number): boolean {
  if ((info.flags & O_PATH) !== 0) return false
  if ((info.flags & O_ASYNC) !== 0) return true
  try {
    return fds.fcntl(copy, fds.F_GETOWN) !== 0
  } catch {
    return true
  }
}
