import { performance } from 'node:perf_hooks'
import {
  type Mode,
  type NotMoved,
  type RoundReport,
  type SourceReport,
  type SourceState,
  sourceWorkloadAt,
} from '@pageferry/migration'
import type { FinalPagemap } from '@pageferry/pages'
import type { DumpRequest, Workload as WorkloadStatus } from '@pageferry/service'
import type { WorkerSpec } from '@pageferry/service/worker'
import type { SourceLanes } from './lanes/lanes.js'
import type { SourceRecords } from './records.js'
import type { Workload } from './workload.js'

/** The report as it grows. All times are those of this machine's clock. */
export class ReportInProgress {
  readonly #report: SourceReport
  readonly #startedAt = performance.now()
  /** 0: the freeze was not in this process. */
  #frozenAt = 0

  /** Continues the report of the worker before, if its dump was complete. */
  constructor({ id, request }: WorkerSpec<DumpRequest>, mode: Mode, { dumpEnd, workload }: SourceRecords) {
    const { comm = '', threads = 0 } = workload
    this.#report = dumpEnd?.report ?? {
      id,
      mode,
      outcome: 'resumed',
      workload: { pid: request.pid, comm, threads },
      rounds: [],
      pages: { present: 0, parent: 0, lazy: 0, zero: 0, hole: 0 },
      bytesOnWire: 0,
      compressed: { pages: 0, bytes: 0 },
      blackoutMs: 0,
      totalMs: 0,
      notMoved: [],
      blackout: { freezeMs: 0, captureMs: 0 },
    }
  }

  /** The original as the service may show it in this state of the machine. */
  workloadIn(state: SourceState, { isGone }: Workload): WorkloadStatus {
    // A successor may find it gone, and only then learn from its machine that the predecessor resumed it.
    return { ...this.#report.workload, where: isGone ? 'gone' : whereIs(state) }
  }

  noteWorkload(known: Partial<SourceReport['workload']>): void {
    Object.assign(this.#report.workload, known)
  }

  noteRound(round: RoundReport): void {
    this.#report.rounds.push(round)
  }

  /** The downtime begins. */
  noteFreeze(): void {
    this.#frozenAt = performance.now()
  }

  /** Every thread stands still. */
  noteFrozen(threads: number): void {
    this.noteWorkload({ threads })
    this.#report.blackout.freezeMs = performance.now() - this.#frozenAt
  }

  noteCaptured(pages: FinalPagemap['counts']): void {
    const { blackout } = this.#report
    blackout.captureMs = performance.now() - this.#frozenAt - blackout.freezeMs
    this.#report.pages = { ...pages }
  }

  noteNotMoved(more: NotMoved[]): void {
    this.#report.notMoved.push(...more)
  }

  /** The downtime has ended. The destination repeats that after a reconnect; only the first time counts. */
  noteRunning(): void {
    if (this.#report.blackoutMs !== 0 || this.#frozenAt === 0) return
    this.#report.blackoutMs = performance.now() - this.#frozenAt
  }

  noteOutcome(outcome: SourceReport['outcome']): void {
    this.#report.outcome = outcome
  }

  now({ bytesSent, compressed }: Pick<SourceLanes, 'bytesSent' | 'compressed'>): SourceReport {
    this.#report.bytesOnWire = bytesSent
    this.#report.compressed = compressed
    this.#report.totalMs = performance.now() - this.#startedAt
    return this.#report
  }
}

/** Where the original is. While the workload runs on the destination, the original is frozen. */
function whereIs(state: SourceState): WorkloadStatus['where'] {
  if (state.name === 'released') return 'gone'
  switch (sourceWorkloadAt(state)) {
    case 'running-on-source':
      return 'running'
    case 'exited':
      return 'gone'
    default:
      return 'frozen'
  }
}
