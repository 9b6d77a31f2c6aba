import { performance } from 'node:perf_hooks'
import {
  type Mode,
  type RoundReport,
  type SourceReport,
  type SourceState,
  sourceWorkloadAt,
} from '@pageferry/migration'
import type { FinalPagemap } from '@pageferry/pages'
import type { DumpRequest, Workload } from '@pageferry/service'
import type { WorkerSpec } from '@pageferry/service/worker'
import type { SourceLanes } from './lanes/lanes.js'
import type { OriginalProcess } from './process.js'
import type { SourceRecords } from './records.js'

/** The report as it grows; all times are of this machine's clock. */
export class ReportInProgress {
  readonly #report: SourceReport
  readonly #startedAt = performance.now()
  /** 0: not in this process. */
  #frozenAt = 0

  /** Goes on with that of the worker before, if its dump was complete. */
  constructor({ id, request }: WorkerSpec<DumpRequest>, mode: Mode, { dumpEnd, original }: SourceRecords) {
    const { comm = '', threads = 0 } = original
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
      blackout: { freezeMs: 0, captureMs: 0 },
    }
  }

  /** What the service may say of the original while the machine is in this state. */
  workloadIn(state: SourceState, { isGone }: OriginalProcess): Workload {
    // A successor may find it gone and only then hear from its machine that it resumed it.
    return { ...this.#report.workload, where: isGone ? 'gone' : whereIs(state) }
  }

  noteWorkload(known: Partial<SourceReport['workload']>): void {
    Object.assign(this.#report.workload, known)
  }

  noteRound(round: RoundReport): void {
    this.#report.rounds.push(round)
  }

  /** The blackout begins. */
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

  /** The blackout has ended; said again after a reconnect, and then not news. */
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

/** Of the original: whatever runs on the destination, it is frozen until it is killed. */
function whereIs(state: SourceState): Workload['where'] {
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
