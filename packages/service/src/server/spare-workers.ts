import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { type ErrorInfo, type Logger, MiB, newId } from '@pageferry/base'
import type { WorkerMessage } from '../worker/ipc.js'
import type { Limits } from './limits.js'
import { isAlive } from './process-identity.js'
import { WorkerProcess } from './worker-process.js'

/**
 * Workers without a migration. Node and the worker's code take 0.8 s of processor time to start and to be compiled. A
 * spare worker does that before a migration needs it, and rehearses (checkpoint/src/rehearsal.ts).
 *
 * A spare worker is replaced when no migration is under way: starting one uses the processors that rounds and a freeze
 * need. Until then migrations begin with a worker that was not rehearsed, as they do without spare workers.
 *
 *   starts ─ dies ─▶ another one, after a pause that doubles
 *      │
 *      ├─ unfit, or too large ─▶ no spare workers until a migration has succeeded here; logged once
 *      ▼
 *   rehearsed ─ take() ─▶ belongs to a migration
 */
export interface SpareWorkersOptions {
  workerPath: string
  /** Gets one directory per rehearsal. Directories that earlier services left there are removed. */
  directory: string
  limits: Limits
  logger: Logger
  /** True when no migration is under way, and the service is not stopping. */
  mayStart(): boolean
}

interface Spare {
  worker: WorkerProcess
  directory: string
  startedAt: number
}

export class SpareWorkers {
  readonly #options: SpareWorkersOptions
  readonly #spares = new Set<Spare>()
  /** Deaths in a row; decides the pause before the next start. */
  #deaths = 0
  #restart: NodeJS.Timeout | undefined
  #isUnfit = false
  #hasComplained = false

  constructor(options: SpareWorkersOptions) {
    this.#options = options
    rmSync(options.directory, { recursive: true, force: true })
  }

  /** Starts missing spare workers, if `mayStart` allows it. */
  fill(): void {
    const { limits, mayStart } = this.#options
    if (this.#isUnfit || this.#restart !== undefined || !mayStart()) return
    while (this.#spares.size < limits.spareWorkers) this.#start()
  }

  /**
   * Returns a spare worker for a migration. One that has rehearsed comes first; otherwise one that is about to rehearse
   * and will skip it. undefined: there is none.
   */
  take(): WorkerProcess | undefined {
    for (const spare of this.#spares) {
      this.#spares.delete(spare)
      const { identity } = spare.worker
      // It may have died without our having noticed.
      if (identity !== undefined && isAlive(identity)) return spare.worker
    }
    return undefined
  }

  has(pid: number): boolean {
    return [...this.#spares].some(({ worker }) => worker.identity?.pid === pid)
  }

  /** A migration has succeeded, so the host itself can rehearse: allows spare workers again. */
  noteHostFit(): void {
    this.#isUnfit = false
  }

  /** Resolves when all spare workers have ended. */
  async stop(): Promise<void> {
    clearTimeout(this.#restart)
    const { exitTimeoutMs } = this.#options.limits
    await Promise.all(
      [...this.#spares].map((spare) => {
        this.#spares.delete(spare)
        return spare.worker.dismiss(exitTimeoutMs)
      }),
    )
    rmSync(this.#options.directory, { recursive: true, force: true })
  }

  #start(): void {
    const { workerPath, directory } = this.#options
    const worker = new WorkerProcess(workerPath, 'spare')
    const spare = { worker, directory: join(directory, newId()), startedAt: Date.now() }
    this.#spares.add(spare)
    worker.listen((message) => this.#receive(spare, message))
    worker.send({ type: 'rehearse', directory: spare.directory })
    void worker.gone.then((end) => this.#onGone(spare, end))
  }

  #receive(spare: Spare, message: WorkerMessage): void {
    if (message.type === 'unfit') this.#giveUp(spare, 'a spare worker cannot rehearse', message.error)
    else if (message.type === 'rehearsed') this.#check(spare)
  }

  #check(spare: Spare): void {
    const { limits, logger } = this.#options
    removeDirectory(spare)
    const { identity } = spare.worker
    const bytes = identity === undefined ? 0 : residentBytes(identity.pid)
    const tookMs = Date.now() - spare.startedAt
    if (bytes <= limits.spareMemoryBytes) {
      logger.info(
        { pid: identity?.pid, tookMs, mebibytes: Math.round(bytes / MiB) },
        'a spare worker is ready',
      )
      return
    }
    const message = `it takes ${Math.round(bytes / MiB)} MiB, more than ${limits.spareMemoryBytes / MiB}`
    this.#giveUp(spare, 'a spare worker is too large', { code: 'INTERNAL', message })
  }

  #giveUp(spare: Spare, why: string, error: ErrorInfo): void {
    const { logger, limits } = this.#options
    this.#isUnfit = true
    this.#spares.delete(spare)
    void spare.worker.dismiss(limits.exitTimeoutMs)
    if (this.#hasComplained) return
    this.#hasComplained = true
    logger.warn({ error }, `${why}: migrations begin with workers that were not rehearsed`)
  }

  /** Also runs for a worker that was taken: its directory is not needed any more then. */
  #onGone(spare: Spare, end: string): void {
    removeDirectory(spare)
    if (!this.#spares.has(spare)) return
    this.#spares.delete(spare)
    const { logger, limits } = this.#options
    const { minBackoffMs, maxBackoffMs, steadyMs } = limits
    if (Date.now() - spare.startedAt > steadyMs) this.#deaths = 0
    const pauseMs = Math.min(maxBackoffMs, minBackoffMs * 2 ** Math.min(this.#deaths++, 20))
    logger.warn({ end, pauseMs }, 'a spare worker is gone')
    this.#restart ??= setTimeout(() => {
      this.#restart = undefined
      this.fill()
    }, pauseMs)
  }
}

function removeDirectory({ directory }: Spare): void {
  rmSync(directory, { recursive: true, force: true })
}

/** 0 when the process is gone. */
function residentBytes(pid: number): number {
  try {
    const kibibytes = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1]
    return 1024 * Number(kibibytes ?? 0)
  } catch {
    return 0
  }
}
