import { readFileSync } from 'node:fs'
import { fds } from '@pageferry/kernel'
import type { SkeletonProcess } from '../../remote/skeleton-process.js'
import type { Tell } from './entries.js'

/** User id of the login, for the audit (proc_pid_loginuid(5)). A process can set only its own; threads inherit it. */

const unset = 0xffff_ffff

/** @returns undefined: it was never set, or the kernel has no audit */
export function dumpLoginUid(pid: number | 'self'): number | undefined {
  try {
    const uid = Number(readFileSync(`/proc/${pid}/loginuid`, 'utf8'))
    return uid === unset ? undefined : uid
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    return undefined
  }
}

/** Comes before the skeleton has threads. The skeleton began with the uid of the service. */
export function restoreLoginUid(skeleton: SkeletonProcess, uid: number | undefined, tell: Tell): void {
  if (uid === dumpLoginUid('self')) return
  const { pid, freeFd } = skeleton
  const text = Buffer.from(String(uid ?? unset))
  const path = skeleton.put(Buffer.from('/proc/self/loginuid\0'))
  // EPERM if one is set already, without CAP_AUDIT_CONTROL. After a failed open the write fails, too.
  skeleton.queue(pid, 'open', [path, fds.O_WRONLY | fds.O_CLOEXEC, 0], { onError: () => {} })
  skeleton.queue(pid, 'write', [freeFd, skeleton.put(text), text.length], {
    onError: () =>
      tell({
        what: `login-uid of the process (${uid ?? 'unset'})`,
        reason: 'the destination may not set it: its service was started in a login session, or has no audit',
      }),
  })
  skeleton.queue(pid, 'close', [freeFd], { onError: () => {} })
}
