import { performance } from 'node:perf_hooks'
import type { ErrorInfo } from '@pageferry/base'
import type { Outcome } from '@pageferry/migration'
import type { Progress, Workload } from '../api/schemas.js'
import type { WorkerChannel } from './worker-channel.js'

/** Progress comes with every batch; ten statuses a second are enough for any reader. */
const pauseMs = 100
/** Longest silence. Users want to see the state of a freeze that takes longer. */
const maxQuietMs = 250

export interface WorkerStatus {
  /** Name of the state of the worker's machine. */
  state: string
  committed: boolean
  /** Absent until there is a process. */
  workload?: Workload
  report: object
}

/** Tells the service the worker's state, its progress, and at the end the outcome. */
export class StatusReporter {
  readonly #channel: WorkerChannel
  readonly #look: () => WorkerStatus
  #progress: Progress
  #lastAt = 0
  #quiet: NodeJS.Timeout | null = null

  /** `look` is called for each message, so that each is current when it is sent. */
  constructor(channel: WorkerChannel, first: Progress, look: () => WorkerStatus) {
    this.#channel = channel
    this.#progress = first
    this.#look = look
  }

  /** Most calls send nothing; the next message carries the latest progress. `now` sends in any case. */
  show(progress: Progress, now = false): void {
    this.#progress = progress
    if (now || performance.now() - this.#lastAt >= pauseMs) this.send()
  }

  /**
   * Sends nothing until `speak`. While the workload stands still every message would wake the service, which writes,
   * and the clients that listen to it. They would use the processors that the freeze needs.
   */
  beQuiet(): void {
    this.#quiet ??= setTimeout(() => this.speak(), maxQuietMs).unref()
  }

  /** Ends the silence and sends the current status. */
  speak(): void {
    if (this.#quiet === null) return
    clearTimeout(this.#quiet)
    this.#quiet = null
    this.send()
  }

  /** Sends a change of the state. Only the silence of `beQuiet` drops it. */
  send(): void {
    if (this.#quiet !== null) return
    this.#lastAt = performance.now()
    const { report, ...status } = this.#look()
    this.#channel.send({ type: 'status', ...status, progress: this.#progress, report: { ...report } })
  }

  /** Sends the outcome, which is the last status. Returns the reason if it is not `migrated`. */
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
