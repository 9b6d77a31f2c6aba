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

/** What the source is asked for, and the destination; what the first answers the second needs is not chosen. */
export interface MigrationOptions
  extends Partial<Omit<DumpRequest, 'pid' | 'injectFault'>>,
    Omit<RestoreRequest, 'id' | 'token' | 'source'> {
  /** Where the destination dials instead of the source's data address: a relay in front of it, to measure with. */
  via?: (dataUrl: string) => Promise<string>
}

export interface MigrationRequest extends MigrationOptions {
  /** URL of the dump-service of the machine that the process leaves. */
  source: string
  /** URL of the restore-service of the machine that it comes to. */
  destination: string
  /** As the source sees it. */
  pid: number
}

/** What both services last said about a migration. A side that was never heard of is undefined. */
export interface Sides {
  source?: Status
  destination?: Status
}

export interface MigrationResult extends Sides {
  id: string
  /** true: the workload runs, or ran, on the destination and the source has let go of it. */
  migrated: boolean
  /** It runs, or ran, on the destination, but its memory was not proven: the source keeps the original, frozen. */
  kept: boolean
  /** The workload stood still for it, or was about to: whatever went wrong then is a failure and no refusal. */
  touched: boolean
  /** The caller stopped watching after the commit; the services go on by themselves. */
  unwatched: boolean
}

export interface MigrateHooks {
  onStatus?: (status: Status) => void
  /** Cancels up to the commit; after that it only ends the watching. */
  signal?: AbortSignal
  /** A URL that leads from here to the same service. Default: the URL itself. */
  reach?: (url: string) => Promise<string>
}

/** A restarted service takes its migrations over; after the commit that may be worth a long wait. */
const patienceMs = 300_000

/** When one side has ended without success, the other one knows within a moment, or not at all. */
const otherSideMs = 10_000

/**
 * Moves a process: creates the migration on the source, which refuses what cannot be moved, then on the destination,
 * and watches both until they have ended.
 *
 * @throws what a service refused. When nothing is thrown the result says where the workload is.
 */
export async function migrate(
  request: MigrationRequest,
  { onStatus = () => {}, signal, reach = async (url) => url }: MigrateHooks = {},
): Promise<MigrationResult> {
  const reached = new Map<string, string>()
  try {
    const connect = async <R extends Role>(url: string, role: R): Promise<ServiceClient<R>> => {
      const direct = new ServiceClient(url, role) // complains about a malformed URL
      const near = await reach(direct.url)
      if (near === direct.url) return direct
      reached.set(near, direct.url)
      return new ServiceClient(near, role)
    }
    const source = await connect(request.source, 'source')
    const destination = await connect(request.destination, 'destination')
    // A destination that is down must not cost the workload even an inspection.
    await Promise.all([source.health(), destination.health()])
    return await new Migration(source, destination, onStatus).run(request, signal)
  } catch (error) {
    throw translate(error, reached)
  }
}

/** Names the address that the user gave and not the one that leads there, where a refused connection looks broken. */
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

  /** Follows both sides to their ends. */
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

  /** Before the commit the source undoes everything; after it answers CONFLICT, and there is nothing to undo. */
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

/** What one of the two services is asked for. */
function pick<T>(request: MigrationRequest, schema: { properties: object }): Partial<T> {
  return Object.fromEntries(
    Object.entries(request).filter(([name]) => name in schema.properties),
  ) as Partial<T>
}
