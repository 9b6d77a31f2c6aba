import { hostFacts } from '@pageferry/checkpoint'
import type { DestinationReport, FromDestination } from '@pageferry/migration'
import { errorToFrame, errorToJson, type Frame, toJsonText } from '@pageferry/wire'

/** What the destination's words carry, beyond what the machine knows. */
export interface WordFacts {
  /** Of the restored process, as this host sees it. */
  pid: number
  report: DestinationReport
  /** Milliseconds of the parts of the restore, by name; for the source's log. */
  readyParts: Record<string, number>
}

/** A message of the machine as a frame for the source. */
export function frameOf(message: FromDestination, { pid, report, readyParts }: WordFacts): Frame {
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
