import type { Logger } from '@pageferry/base'
import type { Phases } from '@pageferry/migration'
import type { DumpRequest, Settings } from '@pageferry/service'
import type { Holds, Inbox, StatusReporter, WorkerChannel, WorkerSpec } from '@pageferry/service/worker'
import type { SourceLanes } from './lanes/lanes.js'
import type { Push } from './lazy/push.js'
import type { SourceRecords } from './records.js'
import type { ReportInProgress } from './report.js'
import type { Pacing } from './rounds/pacing.js'
import type { HashServer } from './verify/hash-server.js'
import type { Workload } from './workload.js'

/** State that the phases of one migration share. Each phase is one file. */
export interface Source {
  readonly spec: WorkerSpec<DumpRequest>
  readonly settings: Settings
  readonly log: Logger
  readonly channel: WorkerChannel
  readonly status: StatusReporter
  readonly phases: Phases
  /** The workload that is moved. */
  readonly workload: Workload
  /** Everything that must be undone. */
  readonly holds: Holds
  /** Facts that a successor must know. */
  readonly records: SourceRecords
  readonly report: ReportInProgress
  /** The connections. */
  readonly lanes: SourceLanes
  /** Replies of the destination to the running phase. */
  readonly inbox: Inbox
  readonly pacing: Pacing
  /** Resolved when the workload runs on the destination. */
  readonly running: Deferred
  /** Set in the lazy phase. */
  push: Push | null
  /** Set while the original is frozen for good. */
  hashes: HashServer | null
}

/** A promise with its resolve function. */
export class Deferred {
  resolve: () => void = () => {}
  readonly promise = new Promise<void>((resolve) => {
    this.resolve = resolve
  })
}
