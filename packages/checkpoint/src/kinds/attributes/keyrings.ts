import { type Problem, printable } from '../../problems.js'
import type { CallBatch } from '../../remote/call-batch.js'
import type { SkeletonProcess } from '../../remote/skeleton-process.js'

/** Keyrings that belong to a thread or process (keyrings(7)). Their keys are in the kernel of the source. */

const keyctlGetKeyringId = 0
const keyctlJoinSession = 1
const keyctlDescribe = 6
const keyctlRead = 11
const specThread = -1
const specProcess = -2
const specSession = -3
/** Of the description "keyring;UID;GID;PERM;NAME"; a longer one is cut. */
const descriptionBytes = 128
/** The session keyring of a process that has none of its own: the user's. */
const usersOwn = /;_uid_ses\.\d+$/

/**
 * A question about the session keyring has a side effect: a process without one gets that of its user. The first question of the
 * process itself would have the same effect (session-keyring(7)).
 *
 * @returns the keyrings, once the batch has run
 */
export function askKeyrings(batch: CallBatch): () => Problem[] {
  const thread = batch.tryAdd('keyctl', keyctlGetKeyringId, specThread, 0)
  const process = batch.tryAdd('keyctl', keyctlGetKeyringId, specProcess, 0)
  const text = batch.room(descriptionBytes)
  const session = batch.tryAdd('keyctl', keyctlDescribe, specSession, text, descriptionBytes)
  // The ids of its keys, 4 bytes each. Without room the kernel only says how many bytes there are.
  const keys = batch.tryAdd('keyctl', keyctlRead, specSession, 0, 0)
  return () => {
    const lost: Problem[] = []
    const note = (what: string): void => {
      lost.push({ what, reason: 'keys stay in the kernel that was given them' })
    }
    if (thread() > 0n) note('thread-keyring of the main thread')
    if (process() > 0n) note('process-keyring of the process')
    // Negative: the kernel has no keyrings, or a filter forbids to ask.
    const length = Math.min(Number(session()), descriptionBytes) - 1
    const description =
      length > 0 ? printable(batch.read(text, descriptionBytes).toString('latin1', 0, length)) : ''
    if (description !== '' && !usersOwn.test(description) && keys() > 0n) {
      note(`session-keyring of the process (${description.split(';').at(-1)})`)
    }
    return lost
  }
}

/** Gives the skeleton an empty session keyring. It began with that of the service, whose keys the workload must not have. */
export function restoreKeyrings(skeleton: SkeletonProcess): void {
  skeleton.queue(skeleton.pid, 'keyctl', [keyctlJoinSession, 0], { onError: () => {} })
}
