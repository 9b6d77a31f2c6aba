import {
  type DestinationReport,
  type DestinationState,
  type DestinationStateName,
  NO_FAULTS,
} from '@pageferry/migration'
import type { Workload } from '@pageferry/service'
import type { WorkerStatus } from '@pageferry/service/worker'
import type { RestoredProcess } from './process.js'
import type { Remembered } from './records.js'

/** From Commit on the migration can no longer be cancelled. */
const committedStates: readonly DestinationStateName[] = ['committed', 'running', 'drained', 'done', 'lost']

/** The report of a migration that has measured nothing yet. */
export function emptyReport(): DestinationReport {
  return {
    faults: { ...NO_FAULTS },
    pushedPages: 0,
    prefetchedPages: 0,
    usefulPrefetchedPages: 0,
    drainMs: 0,
    verify: null,
    notMoved: [],
    blackout: { restoreMs: 0, resumeMs: 0 },
  }
}

/** The status that the service gets and shows to its clients. */
export function destinationStatus(
  state: DestinationState,
  { pid, exit }: Pick<RestoredProcess, 'pid' | 'exit'>,
  { comm = '', threads = 0 }: Remembered,
  report: DestinationReport,
): WorkerStatus {
  const workload: Workload = { pid, comm, threads, where: whereIs(state), ...(exit && { exit }) }
  return {
    state: state.name,
    committed: committedStates.includes(state.name),
    ...(pid === 0 ? {} : { workload }),
    report,
  }
}

function whereIs(state: DestinationState): Workload['where'] {
  if (state.exit !== undefined) return 'gone'
  switch (state.name) {
    case 'running':
    case 'drained':
    case 'done':
      return 'running'
    case 'ready':
    case 'restoring':
      return 'frozen'
    case 'committed':
    case 'lost':
      return 'unknown'
    default:
      return 'gone'
  }
}
