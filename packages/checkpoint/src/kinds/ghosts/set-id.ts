import type { CredsEntry } from '@pageferry/images'
import type { GhostFacts } from './make-ghost.js'

const setUserId = 0o4000
const setGroupId = 0o2000

/** Only with it does the set-group-id bit change the group of a program; without it it meant mandatory locks. */
const groupMayExecute = 0o010

type SetId = Pick<GhostFacts, 'mode' | 'uid' | 'gid'>

/**
 * The bits of a program that would let the workload become another user. They count for nothing on a file system that is
 * mounted nosuid, as the original's may have been. The new file may lie on another one, so it comes without them, unless
 * they are for a user or group that the workload is.
 */
export function foreignSetIdBits({ mode, uid, gid }: SetId, creds: CredsEntry | undefined): number {
  const users = creds === undefined ? [] : [creds.uid, creds.euid, creds.suid]
  const groups = creds === undefined ? [] : [creds.gid, creds.egid, creds.sgid, ...(creds.groups ?? [])]
  if (users.includes(0)) return 0
  const user = users.includes(uid) ? 0 : setUserId
  const group = groups.includes(gid) || (mode & groupMayExecute) === 0 ? 0 : setGroupId
  return mode & (user | group)
}
