import {
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { type Logger, PageferryError } from '@pageferry/base'
import type { Role } from '../api/roles.js'
import { isFinal, type Status } from '../api/schemas.js'
import type { WorkerSpec } from '../worker/ipc.js'
import { identifyProcess, isAlive, type ProcessIdentity } from './process-identity.js'

/**
 * A service's directory:
 *
 *   service.lock            identity of the service that owns the directory
 *   spares/                 directories of rehearsing spare workers; made anew by each service
 *   <id>/spec.json          everything that a worker needs to take over: a SavedSpec
 *   <id>/status.json        the Status as last known
 *   <id>/…                  files of the worker: journal, images, sockets
 *
 * Both files are replaced by rename, so a reader never sees half of one, whatever is killed when. They are written
 * synchronously: when the call returns, they survive the death of the service, and spec.json also that of the machine.
 * A status that is lost or damaged only means that a worker is asked once more.
 */

/** Raised when the meaning of spec.json changes. Files of another format are not touched. */
export const specFormat = 1

export interface SavedSpec extends WorkerSpec {
  format: typeof specFormat
  /** The worker that was last started. Its successor must not begin while it lives. */
  worker: ProcessIdentity | null
  cancelRequested: boolean
  committed: boolean
}

export interface SavedMigration {
  spec: SavedSpec
  status: Status
}

const idPattern = /^[0-9a-f]{16}$/

function replaceFile(path: string, value: unknown, durable: boolean): void {
  const temporary = `${path}.new`
  const fd = openSync(temporary, 'w', 0o600)
  try {
    writeFileSync(fd, JSON.stringify(value))
    // Without it a power failure may leave an empty file behind the new name.
    if (durable) fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
  renameSync(temporary, path)
}

export class StateDir {
  readonly path: string
  readonly #log: Logger

  /**
   * Creates the directory if needed and takes its lock.
   * @throws CONFLICT when another live service owns it, NOT_PERMITTED when it cannot be written.
   */
  constructor(path: string, log: Logger) {
    this.path = path
    this.#log = log
    try {
      mkdirSync(path, { recursive: true, mode: 0o700 })
      this.#lock()
    } catch (error) {
      if (error instanceof PageferryError) throw error
      const code = (error as NodeJS.ErrnoException).code ?? String(error)
      throw new PageferryError(
        'NOT_PERMITTED',
        `the state directory ${path} cannot be used (${code}): run the service as root or choose another directory`,
        { cause: error },
      )
    }
  }

  get #lockPath(): string {
    return join(this.path, 'service.lock')
  }

  /**
   * Two services on one directory would give every migration two workers. Two services that start at the same instant
   * over a dead one's lock may both get here. The second then fails to bind the port, which comes before any worker is
   * started.
   */
  #lock(): void {
    for (;;) {
      try {
        writeFileSync(this.#lockPath, JSON.stringify(identifyProcess(process.pid)), {
          flag: 'wx',
          mode: 0o600,
        })
        return
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
      }
      const holder = readJson<ProcessIdentity>(this.#lockPath)
      if (holder !== undefined && isAlive(holder)) {
        throw new PageferryError(
          'CONFLICT',
          `the state directory ${this.path} belongs to a running service (pid ${holder.pid})`,
          { details: { pid: holder.pid } },
        )
      }
      rmSync(this.#lockPath, { force: true })
    }
  }

  unlock(): void {
    rmSync(this.#lockPath, { force: true })
  }

  get sparesPath(): string {
    return join(this.path, 'spares')
  }

  directoryOf(id: string): string {
    return join(this.path, id)
  }

  /** @throws CONFLICT when a migration with this id exists or existed. */
  create(spec: SavedSpec, status: Status): void {
    try {
      mkdirSync(spec.stateDir, { mode: 0o700 })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
      throw new PageferryError('CONFLICT', `migration ${spec.id} is already known here`, {
        details: { id: spec.id },
      })
    }
    this.saveStatus(status)
    this.saveSpec(spec)
  }

  saveSpec(spec: SavedSpec): void {
    replaceFile(join(this.directoryOf(spec.id), 'spec.json'), spec, true)
  }

  saveStatus(status: Status): void {
    replaceFile(join(this.directoryOf(status.id), 'status.json'), status, false)
  }

  remove(id: string): void {
    // Remove spec.json first: without it a half-removed directory is never taken for a migration.
    rmSync(join(this.directoryOf(id), 'spec.json'), { force: true })
    rmSync(this.directoryOf(id), { recursive: true, force: true })
  }

  /** Lists the migrations that earlier services left, oldest first. Unreadable ones are logged and not touched. */
  scan(role: Role): SavedMigration[] {
    const found: SavedMigration[] = []
    for (const id of readdirSync(this.path).filter((name) => idPattern.test(name))) {
      const spec = readJson<SavedSpec>(join(this.directoryOf(id), 'spec.json'))
      const status = readJson<Partial<Status>>(join(this.directoryOf(id), 'status.json'))
      if (spec === undefined) {
        // The service died inside create() (no worker was started yet) or inside remove().
        this.#log.warn({ id }, 'a migration without spec.json is ignored')
        removeIfUnused(this.directoryOf(id))
      } else if (spec.format !== specFormat || spec.id !== id || spec.role !== role) {
        this.#log.error(
          { id, format: spec.format, role: spec.role },
          'a migration of another kind is left alone',
        )
      } else {
        const known = typeof status?.state === 'string' ? status : { state: 'unknown', workload: null }
        found.push({ spec, status: { ...(known as Status), id, role, createdAt: spec.createdAt } })
      }
    }
    return found.sort((a, b) => (a.status.createdAt < b.status.createdAt ? -1 : 1))
  }

  /**
   * Removes ended migrations beyond the newest `kept`, except those that `inUse` claims.
   * @returns the removed ids.
   */
  prune(statuses: Iterable<Status>, kept: number, inUse: (directory: string) => boolean): string[] {
    const ended = [...statuses].filter(isFinal)
    ended.sort((a, b) => ((a.endedAt ?? a.createdAt) < (b.endedAt ?? b.createdAt) ? -1 : 1))
    const removed: string[] = []
    for (const { id } of ended.slice(0, Math.max(0, ended.length - kept))) {
      if (inUse(this.directoryOf(id))) continue
      this.remove(id)
      removed.push(id)
    }
    return removed
  }
}

function readJson<T>(path: string): T | undefined {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as T
  } catch {
    return undefined
  }
}

function removeIfUnused(directory: string): void {
  try {
    for (const name of ['spec.json.new', 'status.json', 'status.json.new']) {
      rmSync(join(directory, name), { force: true })
    }
    rmdirSync(directory)
  } catch {
    // it contains a worker's files: kept for inspection
  }
}
