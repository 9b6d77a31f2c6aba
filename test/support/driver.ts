import { seededRandom } from '@pageferry/base'
import type { HostName, Lab } from '@pageferry/lab'
import {
  type CreatedMigration,
  isFinal,
  type MigrationOptions,
  type Role,
  ServiceClient,
  type Status,
} from '@pageferry/service/client'
import { eventually } from '@pageferry/testing/eventually'
import { childrenOf, commandLine, kill9 } from '@pageferry/testing/processes'

/** Each question costs a millisecond of two processors that a migration needs as well. */
const patientPollMs = 50
const pollMs = 10

export interface Started {
  id: string
  source: ServiceClient<'source'>
  destination: ServiceClient<'destination'>
  created: CreatedMigration
}

/** The two services of a lab, driven like the command line does, but one call at a time. */
export class Driver {
  readonly lab: Lab
  readonly #clients = new Map<string, ServiceClient>()

  constructor(lab: Lab) {
    this.lab = lab
  }

  async client<R extends Role>(host: HostName, role: R): Promise<ServiceClient<R>> {
    const key = `${host}:${role}`
    let client = this.#clients.get(key)
    if (client === undefined) {
      client = new ServiceClient(await this.lab.host(host).reach(role), role)
      this.#clients.set(key, client)
    }
    return client as ServiceClient<R>
  }

  /** @param options with `fault`: one of migration/faults.ts, given to the side that it belongs to */
  async start(pid: number, options: MigrationOptions & { fault?: string } = {}): Promise<Started> {
    const source = await this.client('a', 'source')
    const destination = await this.client('b', 'destination')
    const { newPidNamespace, fault, verify = 'after-resume', mode = 'hybrid', maxRounds, bulkLanes } = options
    const onSource = fault?.startsWith('source-') ? { injectFault: fault } : {}
    const onDestination = fault?.startsWith('destination-') ? { injectFault: fault } : {}
    const created = await source.createMigration({ pid, verify, mode, maxRounds, bulkLanes, ...onSource })
    const { id, token, dataUrl } = created
    await destination.createMigration({
      id,
      token,
      source: dataUrl,
      newPidNamespace,
      ...onDestination,
    })
    return { id, source, destination, created }
  }

  /** Host a's process of this migration's worker (role source), or host b's, as this machine sees it. */
  worker(host: HostName, role: Role, id: string): number | undefined {
    const service = this.lab.host(host).services.get(role)
    if (service === undefined) return undefined
    return childrenOf(service.process.pid).find((pid) => commandLine(pid).some((part) => part.includes(id)))
  }
}

/**
 * kill -9 of the restore worker, some times within so many milliseconds after the handover.
 * @returns `onStatus`, to be called with every status; `nrKilled`, which counts the kills that hit a worker
 */
export function killsOfWorker(
  lab: Lab,
  nrKills: number,
  withinMs: number,
  seed: number,
): { onStatus(status: Status): void; nrKilled: number } {
  const driver = new Driver(lab)
  const random = seededRandom(seed)
  let began = false
  const kills = {
    nrKilled: 0,
    onStatus: ({ role, state, id }: Status) => {
      if (began || role !== 'destination' || state !== 'running') return
      began = true
      let afterMs = 0
      for (let kill = 0; kill < nrKills; kill++) {
        afterMs += (random() * withinMs) / nrKills
        setTimeout(() => {
          if (kill9(driver.worker('b', 'destination', id))) kills.nrKilled++
        }, afterMs)
      }
    },
  }
  return kills
}

/** A service that was asked while it is down or has just come up says nothing for a while. */
export async function statusOf(client: ServiceClient, id: string): Promise<Status | undefined> {
  try {
    return await client.get(id)
  } catch {
    return undefined
  }
}

/** Waits for an end of the migration on one side. */
export function ended(client: ServiceClient, id: string, timeoutMs = 60_000): Promise<Status> {
  let last: Status | undefined
  return eventually(
    () => `the end on the ${client.role}: ${JSON.stringify(last)}`,
    async () => {
      last = await statusOf(client, id)
      return last !== undefined && isFinal(last) ? last : undefined
    },
    { timeoutMs, everyMs: patientPollMs },
  )
}

export async function reached(client: ServiceClient, id: string, states: string[], timeoutMs = 30_000) {
  let last: Status | undefined
  return eventually(
    () => `${states.join(' or ')} on the ${client.role}: ${JSON.stringify(last)}`,
    async () => {
      last = await statusOf(client, id)
      if (last !== undefined && isFinal(last) && !states.includes(last.state)) {
        throw new Error(`ended as ${last.state}: ${last.error?.message}`)
      }
      return last !== undefined && states.includes(last.state) ? last : undefined
    },
    { timeoutMs, everyMs: pollMs },
  )
}
