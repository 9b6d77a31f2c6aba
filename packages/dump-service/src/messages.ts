import { type ErrorInfo, PageferryError } from '@pageferry/base'
import { clocksOf, hostFacts, neededFiles } from '@pageferry/checkpoint'
import { MESSAGE_TYPES, type Message, type Settings } from '@pageferry/migration'
import { errorFromJson, errorToFrame, type Frame, frameToError, WireError } from '@pageferry/wire'
import { asId } from './lanes/lanes.js'
import type { OriginalProcess } from './process.js'

/**
 * A frame of the control lane as the state machine sees it.
 * @throws WireError OUT_OF_ORDER: a frame that is none of its messages, such as a second Hello
 */
export function messageOf(frame: Frame): Message {
  switch (frame.type) {
    case 'failed':
    case 'cancel':
      return { type: frame.type, error: frameToError(frame) }
    case 'abandoned':
      return { type: 'abandoned', reason: frame.reason }
    case 'drained': {
      const error = errorFromJson(frame.errorJson)
      return { type: 'drained', ...(error && { error }) }
    }
    default: {
      const type = MESSAGE_TYPES.find((each) => each === frame.type)
      if (type === undefined) throw new WireError('OUT_OF_ORDER', `${frame.type} after Welcome`)
      return { type, frame }
    }
  }
}

/** What the state machine wants to be sent. Clocks and files of the process are those of now. */
export function frameOf(message: Message, original: OriginalProcess, settings: Settings): Frame {
  switch (message.type) {
    case 'begin':
      return beginFrame(original, settings)
    case 'dumpEnd':
      return { type: 'dumpEnd', freezeMonotonicNs: clocksOf(original.pid).monotonicNs }
    case 'commit':
    case 'released':
    case 'kept':
      return { type: message.type }
    case 'cancel':
    case 'failed':
      return errorToFrame(message.type, message.error ?? unexplained)
    default:
      throw new PageferryError('INTERNAL', `the source does not send ${message.type}`)
  }
}

const unexplained: ErrorInfo = { code: 'INTERNAL', message: 'no reason was given' }

function beginFrame({ pid, facts, identity }: OriginalProcess, { mode, verify }: Settings): Frame {
  const { nsPid, residentPages } = facts
  const clocks = clocksOf(pid)
  return {
    type: 'begin',
    source: hostFacts(),
    asId,
    pid: nsPid,
    comm: identity.comm,
    tids: [nsPid],
    residentPages,
    mode,
    verify,
    files: neededFiles(pid),
    ...clocks,
  }
}
