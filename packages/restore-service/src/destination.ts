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

/** What the phases of one migration work with, each of which is one file. */
export interface Destination {
  readonly spec: WorkerSpec<RestoreRequest>
  readonly log: Logger
  readonly channel: WorkerChannel
  readonly status: StatusReporter
  readonly phases: Phases
  /** What must be undone. */
  readonly holds: Holds
  /** What a successor must know. */
  readonly records: DestinationRecords
  readonly report: DestinationReport
  /** The connections. */
  readonly lanes: DestinationLanes
  /** What the source has answered to a running phase. */
  readonly inbox: Inbox
  /** For what comes while no phase waits for it. */
  post(event: DestinationEvent): void
  /** The root of what is moved. */
  readonly root: RestoredProcess
  /** By as_id: from the preparation on; in a successor those that were restored. */
  readonly members: Map<number, Member>
  /** Of the whole workload, as they come. */
  readonly images: ProcessImages
  readonly imageReceiver: ImageReceiver
  /** --images; null: nobody wants them on disk. */
  readonly stored: StoredImages | null
  /** Milliseconds of the parts of the restore, by name; for the source's log. */
  readyParts: Record<string, number>
  /** From before the first fault until the last page: see lazy/heir.ts. */
  heir: Heir | null
  /** From the resume on. */
  lazy: LazyPhase | null
}

/** One address space of the workload. The preflight refuses trees, so there is one yet. */
export interface Member {
  readonly asId: number
  /** A process that has it. */
  readonly process: RestoredProcess
  /** null in a successor: the rounds are over. */
  readonly rounds: RoundReceiver | null
  /** --verify; null: nobody asked for it. */
  readonly verifier: Verifier | null
  /** With lazy pages, from the final pagemap on; in a successor from the lazy phase on. */
  family: Family | null
}
