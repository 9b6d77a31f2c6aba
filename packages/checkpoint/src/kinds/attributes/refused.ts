import { readFileSync, readlinkSync } from 'node:fs'
import { processes } from '@pageferry/kernel'
import type { Problem } from '../../problems.js'
import { readStat } from '../../proc/stat.js'
import { readStatus } from '../../proc/status.js'
import { readTids } from '../../proc/tasks.js'
import type { SyscallName } from '../../remote/syscalls.js'

/** Attributes that the destination cannot restore, and that must not be lost. */

/** Makes calls in a thread of the workload: a CallBatch, or one call at a time. */
export interface Asker {
  tryAdd(name: SyscallName, ...args: (bigint | number)[]): () => bigint
}

const EPERM = 1n
const EFAULT = 14n
const EACCES = 13n
const ldtEntryBytes = 8

/**
 * No file shows a Landlock domain. But in a domain a thread may not inspect any process outside of it, whatever the rules are
 * (Documentation/userspace-api/landlock.rst, "Ptrace restrictions"). So the thread asks for the robust list of a process of its
 * own user. The kernel checks the permission first, and the null pointers afterwards.
 *
 * @param bystander pid of a process with the thread's user and group, without capabilities, in no domain of its own
 */
export function askThreadRefusals(asker: Asker, tid: number, bystander: number): () => Problem[] {
  const list = asker.tryAdd('get_robust_list', bystander, 0, 0)
  const what = `thread ${tid}`
  return () => {
    switch (-list()) {
      case EPERM:
        return [{ what, reason: 'it is confined by a Landlock domain, which cannot be rebuilt' }]
      case EACCES:
        return [{ what, reason: 'a security module confines it, which cannot be rebuilt' }]
      case EFAULT:
        return []
      default:
        return [{ what, reason: `whether it is confined cannot be found out (get_robust_list: ${list()})` }]
    }
  }
}

/** Asks any thread of the process. With a null pointer the kernel answers 0 only if there is no table to copy. */
export function askProcessRefusals(asker: Asker, pid: number): () => Problem[] {
  const ldt = asker.tryAdd('modify_ldt', 0, 0, ldtEntryBytes)
  return () =>
    ldt() > 0n || ldt() === -EFAULT
      ? [{ what: `process ${pid}`, reason: 'it has a local descriptor table (modify_ldt)' }]
      : []
}

/** SCHED_DEADLINE: the kernel admits a thread only after it has counted the bandwidth of all processors. */
export const deadlinePolicy = 6
/** PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE, both of which PR_SET_IO_FLUSHER sets. */
const ioFlusherFlags = 0x0018_0000
const wholeAddress = '0xffffffffffffffff'

/** Finds the attributes that are visible from outside. */
export function checkAttributes(pid: number): Problem[] {
  const problems: Problem[] = []
  for (const tid of readTids(pid)) {
    const what = tid === pid ? `process ${pid}` : `thread ${tid}`
    try {
      for (const reason of threadRefusals(pid, tid)) problems.push({ what, reason })
    } catch (error) {
      // It has ended meanwhile.
      if (tid === pid || !['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? ''))
        throw error
    }
  }
  return [...problems, ...checkNamespacesOfChildren(pid)]
}

function threadRefusals(pid: number, tid: number): string[] {
  const reasons: string[] = []
  const note = (condition: boolean, reason: string): void => {
    if (condition) reasons.push(reason)
  }
  const { flags } = readStat(pid, tid)
  note(processes.schedGetattr(tid).policy === deadlinePolicy, deadlineReason)
  note((flags & ioFlusherFlags) === ioFlusherFlags, 'it is an I/O flusher (PR_SET_IO_FLUSHER)')
  const { untagMask } = readStatus(pid, tid)
  note(untagMask !== '' && untagMask !== wholeAddress, 'it uses tagged addresses (linear address masking)')
  const label = securityLabel(pid, tid)
  note(label !== securityLabel(process.pid, process.pid), `a security module confines it (${label})`)
  return reasons
}

export const deadlineReason = 'its policy is SCHED_DEADLINE, which the destination may refuse to admit'

/** Of the active security module with labels (AppArmor, SELinux, Smack); '' without one. */
function securityLabel(pid: number, tid: number): string {
  try {
    const label = readFileSync(`/proc/${pid}/task/${tid}/attr/current`, 'latin1').replace(/[\0\n]+$/, '')
    // SELinux has several unconfined domains: services and logins begin in different ones.
    return /unconfined/.test(label) ? 'unconfined' : label
  } catch (error) {
    if (!['ENOENT', 'EINVAL'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
    return ''
  }
}

/** After unshare(2) the children to come will be in other namespaces than the process. */
function checkNamespacesOfChildren(pid: number): Problem[] {
  const reason = 'its children would be in another one than the process itself'
  return ['pid', 'time'].flatMap((name) => {
    const own = namespaceOf(pid, name)
    // A kernel without the namespace has neither. A new pid namespace has no link yet, before its first process.
    if (own === namespaceOf(pid, `${name}_for_children`)) return []
    return [{ what: `${name} namespace`, reason }]
  })
}

function namespaceOf(pid: number, name: string): string | null {
  try {
    return readlinkSync(`/proc/${pid}/ns/${name}`)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    return null
  }
}
