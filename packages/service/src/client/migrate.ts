import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError, toErrorInfo } from '@pageferry/base'
import type { Role } from '../api/roles.js'
import {
  type DumpRequest,
  DumpRequestSchema,
  isFinal,
  type RestoreRequest,
  RestoreRequestSchema,
  type Status,
} from '../api/schemas.js'
import { ServiceClient } from './service-client.js'

/** Settings for both sides. The fields that the destination needs from the source's answer cannot be chosen. */
export interface MigrationOptions
  extends Partial<Omit<DumpRequest, 'pid' | 'injectFault'>>,
    Omit<RestoreRequest, 'id' | 'token' | 'source'> {
  /**
   * Returns the address for the destination to dial instead of the source's data address: a relay, for measurements.
   */
  via?: (dataUrl: string) => Promise<string>
}

export interface MigrationRequest extends MigrationOptions {
  /** URL of the dump-service of the machine that the process leaves. */
  source: string
  /** URL of the restore-service of the machine that it moves to. */
  destination: string
  /** Pid as the source sees it. */
  pid: number
}

/** The last status of each service. A side that never answered is undefined. */
export interface Sides {
  source?: Status
  destination?: Status
}

export interface MigrationResult extends Sides {
  id: string
  /** true: the workload runs, or ran, on the destination, and the source has released it. */
  migrated: boolean
  /** It runs, or ran, on the destination, but its memory was not proven: the source keeps the original, frozen. */
  kept: boolean
  /** The workload stood still, or was about to. An error after that is a failure and not a refusal. */
  touched: boolean
  /** The caller stopped watching after the commit; the services continue by themselves. */
  unwatched: boolean
}

export interface MigrateHooks {
  onStatus?: (status: Status) => void
  /** Cancels the migration before the commit; later it only ends the watching. */
  signal?: AbortSignal
  /** Returns a URL that leads from here to the same service. Default: the URL itself. */
  reach?: (url: string) => Promise<string>
}

/** A restarted service takes over its migrations. After the commit that may be worth a long wait. */
const patienceMs = 300_000

/** When one side has ended without success, the other one learns of it within a moment, or not at all. */
const otherSideMs = 10_000

/**
 * Moves a process. Creates the migration on the source, which refuses processes that cannot be moved, then on the
 * destination, and watches both until they have ended.
 *
 * @throws the refusal of a service. When nothing is thrown the result says where the workload is.
 */
export async function migrate(
  request: MigrationRequest,
  { onStatus = () => {}, signal, reach = async (url) => url }: MigrateHooks = {},
): Promise<MigrationResult> {
  const reached = new Map<string, string>()
  try {
    const connect = async <R extends Role>(url: string, role: R): Promise<ServiceClient<R>> => {
      const direct = new ServiceClient(url, role) // rejects a malformed URL
      const near = await reach(direct.url)
      if (near === direct.url) return direct
      reached.set(near, direct.url)
      return new ServiceClient(near, role)
    }
    const source = await connect(request.source, 'source')
    const destination = await connect(request.destination, 'destination')
    // First check that both answer: a destination that is down must not cost the workload even an inspection.
    await Promise.all([source.health(), destination.health()])
    return await new Migration(source, destination, onStatus).run(request, signal)
  } catch (error) {
    throw translate(error, reached)
  }
}

/** Names the address that the user gave, and not the one that leads there. */
function translate(error: unknown, reached: Map<string, string>): unknown {
  if (!(error instanceof PageferryError)) return error
  for (const [near, url] of reached) {
    if (!error.message.includes(near)) continue
    const refused = error.code === 'PEER_UNREACHABLE'
    const message = refused
      ? `nothing answers at ${url}: is the service running there?`
      : error.message.replaceAll(near, url)
    return new PageferryError(error.code, message, { cause: error, details: { ...error.details, url } })
  }
  return error
}

/** States of the source's machine from the freeze on. */
const touchedStates = [
  'freezing',
  'dumping',
  'awaitingReady',
  'committed',
  'serving',
  'released',
  'kept',
  'abandonedBack',
]

class Migration {
  readonly #clients: { source: ServiceClient<'source'>; destination: ServiceClient<'destination'> }
  readonly #onStatus: (status: Status) => void
  readonly #sides: Sides = {}
  #tooLate = false
  #touched = false

  constructor(
    source: ServiceClient<'source'>,
    destination: ServiceClient<'destination'>,
    onStatus: (status: Status) => void,
  ) {
    this.#clients = { source, destination }
    this.#onStatus = onStatus
  }

  async run(request: MigrationRequest, signal?: AbortSignal): Promise<MigrationResult> {
    const { source, destination } = this.#clients
    signal?.throwIfAborted()
    const { injectFault, via } = request
    const created = await source.createMigration({
      ...pick<DumpRequest>(request, DumpRequestSchema),
      ...{ pid: request.pid, injectFault: undefined },
    })
    const { id, token, dataUrl } = created
    this.#note(created)
    try {
      const dialled = via === undefined ? dataUrl : await via(dataUrl)
      const accepted = await destination.createMigration({
        ...pick<RestoreRequest>(request, RestoreRequestSchema),
        ...{ id, token, source: dialled, injectFault },
      })
      this.#note(accepted)
    } catch (error) {
      await source.cancel(id)
      await this.#follow('source', id, AbortSignal.timeout(otherSideMs))
      throw error
    }
    await this.#watch(id, signal)
    const migrated = this.#sides.source?.state === 'finished' && this.#sides.destination?.state === 'finished'
    const touched = this.#touched
    const kept = this.#sides.source?.report?.outcome === 'kept'
    return { id, ...this.#sides, migrated, kept, touched, unwatched: this.#tooLate && !migrated && !kept }
  }

  /** Watches both sides until they have ended. */
  async #watch(id: string, signal?: AbortSignal): Promise<void> {
    const stop = new AbortController()
    const onAbort = (): void => {
      this.#cancel(id).catch((error) => stop.abort(error))
    }
    if (signal?.aborted) onAbort()
    signal?.addEventListener('abort', onAbort, { once: true })
    try {
      const both = (['source', 'destination'] as const).map(async (role) => {
        const last = await this.#follow(role, id, stop.signal)
        if (last !== 'finished') {
          await this.#waitForOther(role, stop.signal)
          stop.abort()
        }
      })
      await Promise.all(both)
    } finally {
      signal?.removeEventListener('abort', onAbort)
      stop.abort()
    }
    if (stop.signal.reason instanceof PageferryError && stop.signal.reason.code !== 'CONFLICT')
      throw stop.signal.reason
  }

  async #waitForOther(role: Role, stopped: AbortSignal): Promise<void> {
    const other = role === 'source' ? 'destination' : 'source'
    const deadline = Date.now() + otherSideMs
    while (!stopped.aborted && Date.now() < deadline) {
      const status = this.#sides[other]
      if (status !== undefined && isFinal(status)) return
      await sleep(20)
    }
  }

  /** Before the commit the source undoes everything. Later it answers CONFLICT, and there is nothing to undo. */
  async #cancel(id: string): Promise<void> {
    try {
      await this.#clients.source.cancel(id)
    } catch (error) {
      if (toErrorInfo(error).code === 'CONFLICT') this.#tooLate = true
      throw error
    }
  }

  async #follow(role: Role, id: string, signal: AbortSignal): Promise<string> {
    let last = ''
    for await (const status of this.#clients[role].followEvents(id, { signal, patienceMs })) {
      last = status.state
      this.#note(status)
    }
    return last
  }

  #note(status: Status): void {
    this.#sides[status.role] = status
    if (status.role === 'source' && touchedStates.includes(status.state)) this.#touched = true
    this.#onStatus(status)
  }
}

/** The properties of one service's request. */
function pick<T>(request: MigrationRequest, schema: { properties: object }): Partial<T> {
  return Object.fromEntries(
    Object.entries(request).filter(([name]) => name in schema.properties),
  ) as Partial<T>
}
