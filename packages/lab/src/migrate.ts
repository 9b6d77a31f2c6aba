import { constants } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError, toErrorInfo } from '@pageferry/base'
import {
  type CompressionSetting,
  type DestinationReport,
  type MigrationReport,
  mergeReports,
  type SourceReport,
  type VerifySetting,
} from '@pageferry/migration'
import {
  isFinal,
  type Role,
  SERVICE_NAMES,
  ServiceClient,
  type Status,
  type WorkloadExit,
} from '@pageferry/service'
import { Reach } from './relay.js'

export interface MigrationOptions {
  mode?: 'hybrid' | 'precopy' | 'postcopy'
  maxRounds?: number
  maxDowntimeMs?: number
  maxBandwidthMbit?: number
  bulkLanes?: number
  bulkWindowMiB?: number
  /** Default: pages are compressed where that was measured to gain. */
  compression?: CompressionSetting
  newPidNamespace?: boolean
  /** Default off. */
  verify?: VerifySetting
  /** Pages are sent only when they are asked for, for so long after the handover. */
  pushDelayMs?: number
  /** false: only pages that somebody waits for are asked for. Default true. */
  prefetch?: boolean
  /** Default: the best that the source's kernel has. */
  tracker?: 'wp-async' | 'soft-dirty' | 'page-hash'
  /** Directory on the destination that also receives the CRIU images. */
  imagesDir?: string
  /** Where the destination dials instead of the source's data address: a relay in front of it, to measure with. */
  via?: (dataUrl: string) => Promise<string>
  /** Test hook of the restore-service. */
  injectFault?: string
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

/** A restarted service takes its migrations over; after the commit that may be worth a long wait. */
const patienceMs = 300_000

/** When one side has ended without success, the other one knows within a moment, or not at all. */
const otherSideMs = 10_000

/**
 * Moves a process: creates the migration on the source, which refuses what cannot be moved, then on the destination,
 * and watches both until they have ended. Lab addresses need no route, see Reach.
 *
 * `signal` cancels up to the commit; after that it only ends the watching.
 * @throws what a service refused. When nothing is thrown the result says where the workload is.
 */
export async function migrate(
  request: MigrationRequest,
  onStatus: (status: Status) => void = () => {},
  signal?: AbortSignal,
): Promise<MigrationResult> {
  const reach = new Reach()
  const local = new Map<string, string>()
  try {
    const connect = async <R extends Role>(url: string, role: R): Promise<ServiceClient<R>> => {
      const direct = new ServiceClient(url, role) // complains about a malformed URL
      const near = await reach.resolve(direct.url)
      if (near !== direct.url) local.set(near, direct.url)
      return near === direct.url ? direct : new ServiceClient(near, role)
    }
    const source = await connect(request.source, 'source')
    const destination = await connect(request.destination, 'destination')
    // A destination that is down must not cost the workload even an inspection.
    await Promise.all([source.health(), destination.health()])
    return await new Migration(source, destination, onStatus).run(request, signal)
  } catch (error) {
    throw translate(error, local)
  } finally {
    reach.close()
  }
}

/** Names the address that the user gave instead of the relay's, where a broken connection means a refused one. */
function translate(error: unknown, local: Map<string, string>): unknown {
  if (!(error instanceof PageferryError)) return error
  for (const [near, url] of local) {
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
    const { pid, mode = 'hybrid', maxRounds, maxDowntimeMs, bulkLanes, verify, tracker, imagesDir } = request
    const { bulkWindowMiB, compression } = request
    const { maxBandwidthMbit, newPidNamespace, injectFault, pushDelayMs, prefetch, via } = request
    signal?.throwIfAborted()
    const created = await source.createMigration({
      ...{ pid, mode, maxRounds, maxDowntimeMs, maxBandwidthMbit, bulkLanes, verify, tracker, pushDelayMs },
      ...{ bulkWindowMiB, compression },
    })
    const { id, token, dataUrl } = created
    this.#note(created)
    try {
      const dialled = via === undefined ? dataUrl : await via(dataUrl)
      const accepted = await destination.createMigration({
        ...{ id, token, source: dialled, prefetch, newPidNamespace, imagesDir, injectFault },
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

/** How a workload ended. */
export function endText({ kind, value }: WorkloadExit): string {
  if (kind === 'exited') return `exited with status ${value}`
  if (kind !== 'signaled') return 'vanished without a known end'
  const name = Object.entries(constants.signals).find(([, number]) => number === value)?.[0]
  return `was killed by ${name ?? `signal ${value}`}`
}

/** The last sentence of every migration: which machine has the workload, and in what condition. */
export function whereabouts({ source, destination }: Sides): string {
  // A destination that never got that far has a workload without a name.
  const workload = [destination?.workload, source?.workload].find((known) => known != null && known.pid !== 0)
  const name = workload == null ? 'The process' : `Process ${workload.pid} (${workload.comm})`
  const there = destination?.workload
  if (there?.exit !== undefined) {
    return `${name} came to the destination and ${endText(there.exit)} there.`
  }
  if (there?.where === 'running') return `${name} runs on the destination.`
  const here = source?.workload
  if (here?.where === 'running') return `${name} runs on the source, as before.`
  if (here?.where === 'frozen') {
    return `${name} is frozen on the source and handed over; the services finish the migration by themselves.`
  }
  if (here?.where === 'gone') return `${name} is gone from the source: it ended there during the migration.`
  return `${name}: neither side has said where it is; "pageferry migrate" has stopped watching the ${SERVICE_NAMES.source} and the ${SERVICE_NAMES.destination}.`
}

/**
 * Error of a migration that did not succeed. Both sides have one: a cause, and what the other noticed of it, which is a
 * lost connection, a cancellation or an error at second hand.
 */
export function failureOf({ source, destination }: Sides): PageferryError {
  const candidates = [
    { error: source?.error, secondHand: ['REMOTE', 'PEER_UNREACHABLE'], peer: 'destination: ' },
    { error: destination?.error, secondHand: ['REMOTE', 'PEER_UNREACHABLE', 'CANCELLED'], peer: 'source: ' },
  ]
  const cause = candidates.find(
    ({ error, secondHand, peer }) =>
      error !== undefined && !secondHand.includes(error.code) && !error.message.startsWith(peer),
  )
  const info = cause?.error ??
    source?.error ??
    destination?.error ?? { code: 'INTERNAL' as const, message: 'the migration ended without a reason' }
  return new PageferryError(info.code, info.message, { details: info.details })
}

/**
 * The report of both sides together. A migration that failed early has measured little; what it has not is zero.
 * null when the source never reported anything.
 */
export function reportOf({ id, source, destination }: MigrationResult): MigrationReport | null {
  const measured = source?.report as Partial<SourceReport> | undefined
  if (source === undefined || measured === undefined) return null
  const { pid = 0, comm = '', threads = 0 } = source.workload ?? {}
  const complete: SourceReport = {
    ...{ id, mode: 'hybrid', outcome: 'resumed', workload: { pid, comm, threads }, rounds: [] },
    pages: { present: 0, parent: 0, lazy: 0, zero: 0, hole: 0 },
    compressed: { pages: 0, bytes: 0 },
    ...{ bytesOnWire: 0, blackoutMs: 0, totalMs: 0 },
    ...measured,
    blackout: { freezeMs: 0, captureMs: 0, ...measured.blackout },
  }
  const there = destination?.report as DestinationReport | undefined
  return mergeReports(complete, there?.blackout === undefined ? undefined : there)
}
