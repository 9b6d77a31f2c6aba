import { hostFacts } from '@pageferry/checkpoint'
import type { FromDestination } from '@pageferry/migration'
import { errorToFrame, errorToJson, type Frame, toJsonText } from '@pageferry/wire'
import type { Destination } from './destination.js'

/** Turns a message of the machine into a frame for the source. */
export function frameOf(
  message: FromDestination,
  { root, report, readyParts }: Pick<Destination, 'root' | 'report' | 'readyParts'>,
): Frame {
  const { pid } = root
  const { restoreMs, resumeMs } = report.blackout
  switch (message.type) {
    case 'prepared':
      return { type: 'prepared', destination: hostFacts(), pid }
    case 'ready':
      return { type: 'ready', restoreMs, partsJson: toJsonText(readyParts) }
    case 'running':
      return { type: 'running', resumeMs, pid }
    case 'drained':
      return { type: 'drained', statsJson: toJsonText(report), errorJson: errorToJson(message.error) }
    case 'abandoned':
      return { type: 'abandoned', reason: message.reason }
    case 'failed':
    case 'cancel':
      return errorToFrame(message.type, message.error)
  }
}
