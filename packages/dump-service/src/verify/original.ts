import { type ErrorInfo, isKernelError } from '@pageferry/base'
import { cgroupHold } from '@pageferry/checkpoint'
import type { FrameOf } from '@pageferry/wire'
import type { Source } from '../source.js'
import { HashServer } from './hash-server.js'
import { keptError } from './kept-original.js'

/**
 * Answers a HashRequest. The original must be frozen for good.
 * @throws as HashServer does
 */
export function answerHashes(source: Source, frame: FrameOf<'hashRequest'>): void {
  const { workload, records, lanes } = source
  const { asId, pid, memFd, contents } = workload.space
  // The machine reports that the original died.
  if (workload.isGone) return
  source.hashes ??= new HashServer({
    ...{ pid, memFd, asId, known: contents ?? records.contents(asId) },
    send: (answer, payload, done) => lanes.send(answer, payload, done),
  })
  try {
    source.hashes.onRequest(frame)
  } catch (error) {
    if (!isKernelError(error, 'ESRCH')) throw error
  }
}

/**
 * The destination could not prove the memory of the running workload.
 * @returns the error with what an operator must know
 */
export function keepOriginal({ workload, holds, log }: Source, error: ErrorInfo): ErrorInfo {
  const { root, isGone } = workload
  const cause = keptError(error, { pid: root.pid, isGone, freezer: holds.facts(cgroupHold) })
  log.error({ details: cause.details }, cause.message)
  return cause
}
