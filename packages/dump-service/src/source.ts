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

/** What the phases of one migration work with, each of which is one file. */
export interface Source {
  readonly spec: WorkerSpec<DumpRequest>
  readonly settings: Settings
  readonly log: Logger
  readonly channel: WorkerChannel
  readonly status: StatusReporter
  readonly phases: Phases
  /** What is moved. */
  readonly workload: Workload
  /** What must be undone. */
  readonly holds: Holds
  /** What a successor must know. */
  readonly records: SourceRecords
  readonly report: ReportInProgress
  /** The connections. */
  readonly lanes: SourceLanes
  /** What the destination has answered to a running phase. */
  readonly inbox: Inbox
  readonly pacing: Pacing
  /** The workload runs on the destination. */
  readonly running: Deferred
  /** In the lazy phase. */
  push: Push | null
  /** While the original is frozen for good. */
  hashes: HashServer | null
}

/** A promise, and the end of it. */
export class Deferred {
  resolve: () => void = () => {}
  readonly promise = new Promise<void>((resolve) => {
    this.resolve = resolve
  })
}
