import { EventEmitter } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { type ErrorInfo, isErrorCode, type Logger, newId, newToken, PageferryError } from '@pageferry/base'
import type { Role } from '../api/roles.js'
import { isFinal, STARTING, type Status, type WorkloadExit } from '../api/schemas.js'
import type { WorkerMessage, WorkerSpec } from '../worker/ipc.js'
import type { StatusFeed } from './events.js'
import type { Limits } from './limits.js'
import { killAndWait } from './process-identity.js'
import { SpareWorkers } from './spare-workers.js'
import { type SavedMigration, type SavedSpec, type StateDir, specFormat } from './state-dir.js'
import { WorkerProcess } from './worker-process.js'

/**
 * Runs one worker process per migration and replaces those that die.
 *
 * The design is crash-only: one mechanism handles the death of the worker, of the service, and of both. A new worker is
 * started on the migration's directory and told `takeover`. The supervisor never decides what a death means for the
 * workload; the worker's journal does. The supervisor guarantees that a migration never has two workers: the old one is
 * known by pid and start time, and is dead before the new one is told anything of the migration.
 */

export interface SupervisorOptions {
  role: Role
  workerPath: string
  /** Address for the workers' own listeners. */
  host: string
  limits: Limits
  logger: Logger
  /** Defaults for a request that an older version accepted, which may lack newer settings. */
  requestDefaults?: Record<string, unknown>
  /** True while a process outside the service still uses an ended migration's directory. */
  inUse?: (directory: string) => boolean
  /** How a workload ended that was running when its migration finished; undefined while it runs. */
  workloadExit?: (directory: string) => WorkloadExit | undefined
}

/** Events: `status` (Status) after every change, `listening`, `committed`, `ended`. */
class Migration extends EventEmitter implements StatusFeed {
  readonly spec: SavedSpec
  status: Status
  worker: WorkerProcess | undefined
  dataUrl: string | undefined
  /** Deaths in a row; decides the pause before the next worker. */
  deaths = 0
  restart: NodeJS.Timeout | undefined
  saving: NodeJS.Timeout | undefined

  constructor({ spec, status }: SavedMigration) {
    super()
    this.setMaxListeners(0)
    this.spec = spec
    this.status = status
  }

  get ended(): boolean {
    return isFinal(this.status)
  }

  subscribe(listener: (status: Status) => void): () => void {
    this.on('status', listener)
    return () => this.off('status', listener)
  }
}

export class Supervisor {
  readonly #options: SupervisorOptions
  readonly #stateDir: StateDir
  readonly #log: Logger
  readonly #spares: SpareWorkers
  readonly #migrations = new Map<string, Migration>()
  /** Removals of directories under way. */
  readonly #leaving = new Set<Promise<void>>()
  /** Refuses new migrations. */
  #stopping = false
  /** Starts no new workers either. */
  #stopped = false

  /** Reads the migrations that earlier services left in the directory; starts nothing yet. */
  constructor(stateDir: StateDir, options: SupervisorOptions) {
    this.#options = options
    this.#stateDir = stateDir
    this.#log = options.logger
    this.#spares = new SpareWorkers({
      workerPath: options.workerPath,
      directory: stateDir.sparesPath,
      limits: options.limits,
      logger: options.logger,
      mayStart: () => !this.#stopping && this.#active().length === 0,
    })
    for (const saved of stateDir.scan(options.role)) {
      saved.spec.request = { ...options.requestDefaults, ...(saved.spec.request as object) }
      this.#migrations.set(saved.spec.id, new Migration(saved))
    }
    this.#prune()
  }

  /** Gives every migration that has not ended a new worker, and starts a spare one for the next migration. */
  adopt(): void {
    for (const migration of this.#active()) {
      this.#log.info({ id: migration.spec.id, state: migration.status.state }, 'taking over a migration')
      void this.#launch(migration, 'takeover')
    }
    this.#spares.fill()
  }

  /**
   * Starts a source migration and waits until its worker listens, which means that preflight has passed.
   * @throws the error that the worker reported (REFUSED and others: the workload was not touched), CONFLICT, TIMEOUT.
   */
  async createSource(
    request: { pid: number } & Record<string, unknown>,
    clientGone?: AbortSignal,
  ): Promise<{ status: Status; token: string; dataUrl: string }> {
    this.#admit()
    this.#refuseBusyPid(request.pid)
    const migration = this.#add(newId(), newToken(), request)
    const { id, token } = migration.spec
    void this.#launch(migration, 'start')

    // Only the client of this request could ever cancel the migration or bring it a destination.
    const abandon = () => this.#cancel(migration)
    clientGone?.addEventListener('abort', abandon)
    const { listeningTimeoutMs } = this.#options.limits
    const done = () => migration.ended || migration.dataUrl !== undefined
    const inTime = await waitUntil(migration, ['listening', 'ended'], done, listeningTimeoutMs)
    clientGone?.removeEventListener('abort', abandon)

    if (!inTime) {
      this.#cancel(migration)
      throw new PageferryError(
        'TIMEOUT',
        `the worker of migration ${id} was not ready within ${listeningTimeoutMs / 1000} s and was cancelled`,
        { details: { id } },
      )
    }
    if (migration.dataUrl === undefined || migration.ended) {
      const error = migration.status.error
      // The client gets the reason right here, so a refusal is not kept among the ended migrations.
      this.#forget(migration)
      throw new PageferryError(error?.code ?? 'INTERNAL', error?.message ?? `migration ${id} ended at once`, {
        details: error?.details,
      })
    }
    return { status: migration.status, token, dataUrl: migration.dataUrl }
  }

  /**
   * Starts a destination migration; its status shows the progress.
   * @throws CONFLICT, REFUSED.
   */
  createDestination(request: { id: string; token: string } & Record<string, unknown>): Status {
    this.#admit()
    const { id, token, ...rest } = request
    const migration = this.#add(id, token, rest)
    void this.#launch(migration, 'start')
    return migration.status
  }

  list(): Status[] {
    return [...this.#migrations.values()].map((migration) => this.#current(migration))
  }

  /** @throws NOT_FOUND */
  get(id: string): Status {
    return this.#current(this.#find(id))
  }

  /** @throws NOT_FOUND */
  feed(id: string): StatusFeed {
    return this.#find(id)
  }

  /**
   * Asks the worker to undo everything. Cancelling a failed migration is no error.
   * @throws NOT_FOUND; CONFLICT when it is too late.
   */
  cancel(id: string): Status {
    const migration = this.#find(id)
    if (migration.status.state === 'finished' || (migration.spec.committed && !migration.ended)) {
      const why = migration.ended ? 'has finished' : 'is past its commit and can only go forward'
      throw new PageferryError('CONFLICT', `migration ${id} ${why}: it cannot be cancelled`, {
        details: { id },
      })
    }
    this.#cancel(migration)
    return migration.status
  }

  /**
   * Cancels uncommitted migrations, waits for the workers to undo them, and releases the others: the next service on
   * the directory continues those. A worker that hangs is killed, which is as safe as any crash.
   */
  async stop(): Promise<void> {
    this.#stopping = true
    const sparesGone = this.#spares.stop()
    const { undoTimeoutMs, exitTimeoutMs } = this.#options.limits
    const deadline = Date.now() + undoTimeoutMs
    await Promise.all(
      this.#active().map((migration) => {
        if (!migration.spec.committed) this.#cancel(migration)
        const settled = () => migration.ended || migration.spec.committed
        return waitUntil(migration, ['ended', 'committed'], settled, deadline - Date.now())
      }),
    )
    this.#stopped = true
    for (const migration of this.#active()) {
      this.#log.warn({ id: migration.spec.id, state: migration.status.state }, 'left to the next service')
      clearTimeout(migration.restart)
      this.#saveStatus(migration)
    }
    // Workers whose outcome stands still answer their peers. A moment is enough for a peer that listens.
    const leave = ({ ended, worker }: Migration) =>
      ended ? worker?.release(exitTimeoutMs, exitTimeoutMs) : worker?.dismiss(exitTimeoutMs)
    await Promise.all([...[...this.#migrations.values()].map(leave), ...this.#leaving, sparesGone])
  }

  #active(): Migration[] {
    return [...this.#migrations.values()].filter((migration) => !migration.ended)
  }

  #find(id: string): Migration {
    const migration = this.#migrations.get(id)
    if (migration === undefined) {
      throw new PageferryError('NOT_FOUND', `there is no migration ${id} here`, { details: { id } })
    }
    return migration
  }

  #admit(): void {
    if (this.#stopping) throw new PageferryError('REFUSED', 'the service is stopping')
    const { maxMigrations } = this.#options.limits
    const active = this.#active().length
    if (active >= maxMigrations) {
      throw new PageferryError(
        'REFUSED',
        `this service runs ${active} migrations already, which is its limit: try again when one has ended`,
        { details: { active, maxMigrations } },
      )
    }
  }

  #refuseBusyPid(pid: number): void {
    const other = this.#active().find(({ spec }) => (spec.request as { pid?: number }).pid === pid)
    if (other !== undefined) {
      throw new PageferryError('CONFLICT', `process ${pid} is already being migrated, as ${other.spec.id}`, {
        details: { pid, id: other.spec.id },
      })
    }
    const isWorker = this.#active().some(({ worker }) => worker?.identity?.pid === pid)
    if (pid === process.pid || isWorker || this.#spares.has(pid))
      throw new PageferryError('REFUSED', `process ${pid} belongs to the dump-service itself`)
  }

  #add(id: string, token: string, request: Record<string, unknown>): Migration {
    const { role, host } = this.#options
    const createdAt = new Date().toISOString()
    const spec: SavedSpec = {
      format: specFormat,
      id,
      role,
      token,
      host,
      stateDir: this.#stateDir.directoryOf(id),
      request,
      records: [],
      createdAt,
      worker: null,
      cancelRequested: false,
      committed: false,
    }
    const status: Status = { id, role, state: STARTING, workload: null, createdAt }
    this.#stateDir.create(spec, status)
    const migration = new Migration({ spec, status })
    this.#migrations.set(id, migration)
    this.#log.info({ id }, 'migration created')
    return migration
  }

  /** Runs one worker from its start to its end, and arranges its successor. Never throws. */
  async #launch(migration: Migration, how: 'start' | 'takeover'): Promise<void> {
    try {
      await this.#runWorker(migration, how)
    } catch (error) {
      this.#log.error({ id: migration.spec.id, err: error }, 'the worker could not be started')
      void migration.worker?.dismiss(0)
      migration.worker = undefined
      if (!migration.ended && !this.#stopped) this.#scheduleTakeover(migration)
    }
  }

  async #runWorker(migration: Migration, how: 'start' | 'takeover'): Promise<void> {
    const { spec } = migration
    const { exitTimeoutMs } = this.#options.limits
    if (spec.worker !== null && !(await killAndWait(spec.worker, exitTimeoutMs))) {
      // Two tracers would be worse than a long wait: the old worker hangs in the kernel and dies when that returns.
      this.#log.error({ id: spec.id, pid: spec.worker.pid }, 'the previous worker cannot be killed, waiting')
      this.#scheduleTakeover(migration)
      return
    }
    if (migration.ended || this.#stopped) return
    const worker = this.#spares.take() ?? new WorkerProcess(this.#options.workerPath, spec.id)
    worker.listen((message) => {
      try {
        this.#receive(migration, message)
      } catch (error) {
        // spec.json could not be written (disk full): further acts of the worker could not be cleaned up.
        this.#log.error({ id: spec.id, err: error }, 'a message of the worker could not be recorded')
        void worker.dismiss(0)
      }
    })
    migration.worker = worker
    spec.worker = worker.identity ?? null
    // Save before the worker learns of the migration: until then it has done nothing that needs a successor.
    this.#saveSpec(migration)
    const begunAt = Date.now()
    worker.send({ type: how, spec: workerSpec(spec) })
    if (spec.cancelRequested) worker.send({ type: 'cancel' })

    const end = await worker.gone
    migration.worker = undefined
    if (migration.ended) return
    if (Date.now() - begunAt > this.#options.limits.steadyMs) migration.deaths = 0
    if (!this.#stopped) {
      this.#log.warn(
        { id: spec.id, state: migration.status.state, end },
        'the worker is gone, a new one takes over',
      )
      this.#scheduleTakeover(migration)
    }
  }

  #scheduleTakeover(migration: Migration): void {
    const { minBackoffMs, maxBackoffMs } = this.#options.limits
    const pauseMs = Math.min(maxBackoffMs, minBackoffMs * 2 ** Math.min(migration.deaths, 20))
    migration.deaths += 1
    migration.restart = setTimeout(() => void this.#launch(migration, 'takeover'), pauseMs)
  }

  #receive(migration: Migration, message: WorkerMessage): void {
    const { id } = migration.spec
    if (migration.ended) return
    switch (message.type) {
      case 'listening':
        migration.dataUrl = message.dataUrl
        this.#change(migration, { workload: message.workload })
        migration.emit('listening')
        return
      case 'status': {
        const { type: _, committed, ...change } = message
        if (isFinal(change)) {
          this.#log.error({ id, state: change.state }, 'a worker used a state that belongs to the service')
          return
        }
        this.#change(migration, change)
        if (committed && !migration.spec.committed) {
          migration.spec.committed = true
          this.#saveSpec(migration)
          migration.emit('committed')
        }
        return
      }
      case 'record':
        migration.spec.records.push(message.record)
        this.#saveSpec(migration)
        if (message.seq !== undefined) migration.worker?.send({ type: 'recorded', seq: message.seq })
        return
      case 'finished':
        this.#end(migration, { state: 'finished', report: message.report, workload: message.workload })
        return
      case 'failed': {
        const { workload = migration.status.workload, report = migration.status.report } = message
        const error = {
          ...message.error,
          code: isErrorCode(message.error.code) ? message.error.code : 'INTERNAL',
        }
        const state = error.code === 'CANCELLED' ? 'cancelled' : 'failed'
        this.#end(migration, { state, error, workload, report }, error)
        return
      }
      case 'rehearsed':
      case 'unfit':
        // A spare worker sent it just before it was given the migration.
        return
      default:
        this.#log.error(
          { id, type: (message as { type?: unknown }).type },
          'a worker sent an unknown message',
        )
    }
  }

  #change(migration: Migration, change: Partial<Status>): void {
    const before = migration.status
    migration.status = { ...before, ...change }
    if (
      before.state !== migration.status.state ||
      before.workload?.where !== migration.status.workload?.where
    ) {
      this.#saveStatus(migration)
    } else {
      migration.saving ??= setTimeout(() => this.#saveStatus(migration), this.#options.limits.statusSaveMs)
    }
    migration.emit('status', migration.status)
  }

  #end(migration: Migration, change: Partial<Status>, error?: ErrorInfo): void {
    migration.status = { ...migration.status, ...change, endedAt: new Date().toISOString() }
    this.#saveStatus(migration)
    // From here on the migration counts as ended, also after a crash, so its secret is useless.
    migration.spec.token = ''
    this.#saveSpec(migration)
    this.#log.info({ id: migration.spec.id, state: migration.status.state, error }, 'migration ended')
    migration.emit('status', migration.status)
    migration.emit('ended')
    const { lingerMs, exitTimeoutMs } = this.#options.limits
    void migration.worker?.release(lingerMs, exitTimeoutMs)
    this.#prune()
    if (migration.status.state === 'finished') this.#spares.noteHostFit()
    this.#spares.fill()
  }

  #cancel(migration: Migration): void {
    if (migration.ended || migration.spec.cancelRequested) return
    this.#log.info({ id: migration.spec.id }, 'cancelling')
    migration.spec.cancelRequested = true
    this.#saveSpec(migration)
    // If there is no worker right now, the next one is told.
    migration.worker?.send({ type: 'cancel' })
  }

  /** The status. If the workload ran on after its migration and has ended since, it includes how. */
  #current(migration: Migration): Status {
    const { status, spec } = migration
    if (migration.ended && status.workload?.where === 'running') {
      const exit = this.#options.workloadExit?.(spec.stateDir)
      if (exit !== undefined) {
        migration.status = { ...status, workload: { ...status.workload, where: 'gone', exit } }
        this.#saveStatus(migration)
      }
    }
    return migration.status
  }

  #forget(migration: Migration): void {
    if (!migration.ended) return
    clearTimeout(migration.saving)
    this.#migrations.delete(migration.spec.id)
    const { worker } = migration
    // Its peer never knew the migration, so lingering is pointless. The worker may still be writing its last lines.
    const left = worker?.dismiss(this.#options.limits.exitTimeoutMs) ?? Promise.resolve()
    const removed = left.then(() => this.#stateDir.remove(migration.spec.id))
    this.#leaving.add(removed)
    void removed.finally(() => this.#leaving.delete(removed))
  }

  #prune(): void {
    const { limits, inUse = () => false } = this.#options
    const statuses = [...this.#migrations.values()].map(({ status }) => status)
    for (const id of this.#stateDir.prune(statuses, limits.keptMigrations, inUse)) {
      this.#migrations.delete(id)
    }
  }

  #saveStatus(migration: Migration): void {
    clearTimeout(migration.saving)
    migration.saving = undefined
    try {
      this.#stateDir.saveStatus(migration.status)
    } catch (error) {
      // Only the answer of GET after a restart is at stake.
      this.#log.error({ id: migration.spec.id, err: error }, 'the status could not be saved')
    }
  }

  #saveSpec(migration: Migration): void {
    this.#stateDir.saveSpec(migration.spec)
  }
}

function workerSpec(spec: SavedSpec): WorkerSpec {
  const { id, role, token, host, stateDir, request, records, createdAt } = spec
  return { id, role, token, host, stateDir, request, records, createdAt }
}

/** @returns false when `reached` did not become true within `timeoutMs`. */
async function waitUntil(
  emitter: EventEmitter,
  events: string[],
  reached: () => boolean,
  timeoutMs: number,
): Promise<boolean> {
  if (reached()) return true
  const over = new AbortController()
  const check = () => reached() && over.abort()
  for (const event of events) emitter.on(event, check)
  await sleep(timeoutMs, undefined, { signal: over.signal }).catch(() => {})
  for (const event of events) emitter.off(event, check)
  return reached()
}
