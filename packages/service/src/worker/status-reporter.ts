import { performance } from 'node:perf_hooks'
import type { ErrorInfo } from '@pageferry/base'
import type { Outcome } from '@pageferry/migration'
import type { Progress, Workload } from '../api/schemas.js'
import type { WorkerChannel } from './worker-channel.js'

/** Progress comes with every batch; nobody reads more than ten a second. */
const pauseMs = 100
/** Longest that nobody hears anything: of a freeze that takes so long people want to know where it is. */
const maxQuietMs = 250

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
  #quiet: NodeJS.Timeout | null = null

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

  /**
   * Nothing is sent from now until `speak`. While the workload stands still every message would wake the service, which
   * writes, and whoever listens to it, on the processors that the freeze needs.
   */
  beQuiet(): void {
    this.#quiet ??= setTimeout(() => this.speak(), maxQuietMs).unref()
  }

  /** Says where it is now. */
  speak(): void {
    if (this.#quiet === null) return
    clearTimeout(this.#quiet)
    this.#quiet = null
    this.send()
  }

  /** For changes of the state, none of which is left out but while it is quiet. */
  send(): void {
    if (this.#quiet !== null) return
    this.#lastAt = performance.now()
    const { report, ...status } = this.#look()
    this.#channel.send({ type: 'status', ...status, progress: this.#progress, report: { ...report } })
  }

  /** The outcome, after which no status counts any more. Returns why it is not `migrated`. */
  end(outcome: Outcome, error?: ErrorInfo): ErrorInfo | null {
    this.speak()
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
