import { clocksOf, hostFacts, neededFiles, readNsTids } from '@pageferry/checkpoint'
import type { FromSource, ToSource } from '@pageferry/migration'
import type { Settings } from '@pageferry/service'
import {
  errorFromJson,
  errorToFrame,
  type Frame,
  type FrameOf,
  frameToError,
  isFrameOn,
  maxLocksPerFile,
  maxThreads,
  WireError,
} from '@pageferry/wire'
import type { Workload } from './workload.js'

/**
 * Turns a frame of the control lane into a message for the state machine.
 * @throws WireError OUT_OF_ORDER: the frame is not one of its messages, for example a second Hello
 */
export function messageOf(frame: Frame): ToSource {
  if (!isFrameOn(frame, 'control', 'to-source')) throw unexpected(frame)
  switch (frame.type) {
    case 'hello':
    case 'hashRequest':
      throw unexpected(frame)
    case 'failed':
    case 'cancel':
      return { type: frame.type, error: frameToError(frame) }
    case 'drained': {
      const error = errorFromJson(frame.errorJson)
      return { type: 'drained', ...(error && { error }) }
    }
    default:
      return frame
  }
}

function unexpected({ type }: Frame): WireError {
  return new WireError('OUT_OF_ORDER', `${type} after Welcome`)
}

/** Turns a message of the state machine into a frame. Clocks and files of the process are read now. */
export function frameOf(message: FromSource, workload: Workload, settings: Settings): Frame {
  switch (message.type) {
    case 'begin':
      return beginFrame(workload, settings)
    case 'dumpEnd':
      return { type: 'dumpEnd', freezeMonotonicNs: clocksOf(workload.root.pid).monotonicNs }
    case 'commit':
    case 'released':
    case 'kept':
      return { type: message.type }
    case 'cancel':
    case 'failed':
      return errorToFrame(message.type, message.error)
  }
}

function beginFrame({ root, space }: Workload, { mode, verify }: Settings): FrameOf<'begin'> {
  const { pid, facts, identity } = root
  const { nsPid, residentPages } = facts
  const clocks = clocksOf(pid)
  return {
    type: 'begin',
    source: hostFacts(),
    asId: space.asId,
    pid: nsPid,
    comm: identity.comm,
    // The threads of now. There may be others at the freeze, and their images name them. Begin has no room for more.
    tids: readNsTids(pid).slice(0, maxThreads),
    residentPages,
    mode,
    verify,
    files: neededFiles(pid).map((file) => ({ ...file, locks: file.locks.slice(0, maxLocksPerFile) })),
    ...clocks,
  }
}
