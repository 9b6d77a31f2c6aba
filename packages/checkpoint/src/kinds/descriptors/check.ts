import { closeSync, readlinkSync } from 'node:fs'
import { fds } from '@pageferry/kernel'
import { confirmed, type Problem } from '../../problems.js'
import { type FdInfo, fdinfoLines, readFds } from '../../proc/fdinfo.js'
import type { OpenFile } from './kind.js'
import { kernelNameOf, nameOfUnknown } from './names.js'
import { kindOf } from './registry.js'
import { regularFile } from './regular-file.js'
import { sendsSignals, signalDriven } from './signal-owner.js'

/** Finds the descriptors that cannot be moved. */

/** Names all of them. It opens nothing in the workload and stops nothing. */
export function checkDescriptors(pid: number): Problem[] {
  return confirmed(() => look(pid))
}

function look(pid: number): Problem[] {
  const problems: Problem[] = []
  const pidfd = fds.pidfdOpen(pid)
  try {
    const infos = readFds(pid)
    for (const info of infos) {
      const copy = duplicate(pidfd, info)
      if (copy === null) continue
      try {
        const reason = problemOf({ info, copy }, infos)
        if (reason !== null) problems.push({ what: `descriptor ${info.fd} (${info.target})`, reason })
      } finally {
        closeSync(copy)
      }
    }
  } finally {
    closeSync(pidfd)
  }
  return problems
}

/** null: since it was listed, the workload has closed it, or given its number to another file. */
function duplicate(pidfd: number, { fd, target }: FdInfo): number | null {
  let copy: number
  try {
    copy = fds.pidfdGetfd(pidfd, fd)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EBADF') return null
    throw error
  }
  if (readlinkSync(`/proc/self/fd/${copy}`) === target) return copy
  closeSync(copy)
  return null
}

/** @param descriptors all of the workload's */
export function problemOf(file: OpenFile, descriptors: readonly FdInfo[]): string | null {
  const kind = kindOf(file.info)
  // Any file can be locked by flock(2), a pipe for example.
  if (kind !== undefined && kind !== regularFile && fdinfoLines(file.info, 'lock').length > 0) {
    return `a lock on a file of the kind ${kind.name} is not moved`
  }
  if (kind === undefined) return `descriptors of the kind ${nameOfUnknown(file)} are not moved yet`
  // In this order: the holder of a lease gets signals, too.
  return kind.check(file, descriptors) ?? (sendsSignals(file.info, file.copy) ? signalDriven : null)
}

/** Whether the kernel may write the workload's memory through a descriptor without any tracker noticing. */
export function hasUntrackedWriters(infos: readonly FdInfo[]): boolean {
  return infos.some(
    // We move no io_uring. One may come and go between two rounds all the same.
    (info) => kindOf(info)?.escapesTracking?.(info) === true || kernelNameOf(info) === 'io_uring',
  )
}
