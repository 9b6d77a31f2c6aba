import type { Logger } from '@pageferry/base'
import type { ProcessImages } from '@pageferry/checkpoint'
import type { Heir } from '@pageferry/kernel'
import type { DestinationEvent, DestinationReport, Phases } from '@pageferry/migration'
import type { RestoreRequest } from '@pageferry/service'
import type { Holds, Inbox, StatusReporter, WorkerChannel, WorkerSpec } from '@pageferry/service/worker'
import type { DestinationLanes } from './lanes/lanes.js'
import type { Family } from './lazy/adopt.js'
import type { LazyPhase } from './lazy/phase.js'
import type { RestoredProcess } from './process.js'
import type { DestinationRecords } from './records.js'
import type { ImageReceiver } from './rounds/images.js'
import type { RoundReceiver } from './rounds/receiver.js'
import type { StoredImages } from './rounds/stored-images.js'
import type { Verifier } from './verify/verifier.js'

/** State that the phases of one migration share. Each phase is one file. */
export interface Destination {
  readonly spec: WorkerSpec<RestoreRequest>
  readonly log: Logger
  readonly channel: WorkerChannel
  readonly status: StatusReporter
  readonly phases: Phases
  /** Everything that must be undone. */
  readonly holds: Holds
  /** Facts that a successor must know. */
  readonly records: DestinationRecords
  readonly report: DestinationReport
  /** The connections. */
  readonly lanes: DestinationLanes
  /** Replies of the source to the running phase. */
  readonly inbox: Inbox
  /** Takes events that no phase waits for. */
  post(event: DestinationEvent): void
  /** The root of the process tree that is moved. */
  readonly root: RestoredProcess
  /** Address spaces by as_id, filled by the preparation; in a successor, those that were restored. */
  readonly members: Map<number, Member>
  /** Images of the whole workload, added as they arrive. */
  readonly images: ProcessImages
  readonly imageReceiver: ImageReceiver
  /** --images; null: they are not stored on disk. */
  readonly stored: StoredImages | null
  /** Milliseconds of each part of the restore, by name; for the source's log. */
  readyParts: Record<string, number>
  /** Exists from before the first fault until the last page: see lazy/heir.ts. */
  heir: Heir | null
  /** Set at the resume. */
  lazy: LazyPhase | null
}

/** One address space of the workload. There is only one today: the preflight refuses trees. */
export interface Member {
  readonly asId: number
  /** A process that uses it. */
  readonly process: RestoredProcess
  /** null in a successor, where the rounds are over. */
  readonly rounds: RoundReceiver | null
  /** --verify; null: verification was not asked for. */
  readonly verifier: Verifier | null
  /** Set with lazy pages, from the final pagemap on; in a successor, from the lazy phase on. */
  family: Family | null
}
