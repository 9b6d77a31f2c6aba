import { performance } from 'node:perf_hooks'
import type { ErrorInfo } from '@pageferry/base'
import type { Outcome } from '@pageferry/migration'
import type { Progress, Workload } from './schemas.js'
import type { WorkerChannel } from './worker-channel.js'

/** Progress comes with every batch; nobody reads more than ten a second. */
const pauseMs = 100

export interface WorkerStatus {
  /** Name of the state of the worker's machine. */
  state: string
  committed: boolean
  /** Absent until there is a process to speak of. */
  workload?: Workload
  report: object
}

/** What a worker tells its service: where it is, how far, and at the end how it went. */
export class StatusReporter {
  readonly #channel: WorkerChannel
  readonly #look: () => WorkerStatus
  #progress: Progress
  #lastAt = 0

  /** `look` is called for each message, so that none is older than its sending. */
  constructor(channel: WorkerChannel, first: Progress, look: () => WorkerStatus) {
    this.#channel = channel
    this.#progress = first
    this.#look = look
  }

  /** Most calls send nothing; the last progress shown goes with the next message. `now` sends in any case. */
  show(progress: Progress, now = false): void {
    this.#progress = progress
    if (now || performance.now() - this.#lastAt >= pauseMs) this.send()
  }

  /** For changes of the state, none of which is left out. */
  send(): void {
    this.#lastAt = performance.now()
    const { report, ...status } = this.#look()
    this.#channel.send({ type: 'status', ...status, progress: this.#progress, report: { ...report } })
  }

  /** The outcome, after which no status counts any more. Returns why it is not `migrated`. */
  end(outcome: Outcome, error?: ErrorInfo): ErrorInfo | null {
    const { report, workload } = this.#look()
    if (outcome === 'migrated' && workload !== undefined) {
      this.#channel.send({ type: 'finished', report: { ...report }, workload })
      return null
    }
    const cause = error ?? { code: 'INTERNAL', message: `the migration ended: ${outcome}` }
    this.#channel.send({ type: 'failed', error: cause, workload, report: { ...report } })
    return cause
  }
}
