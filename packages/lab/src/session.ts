import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError } from '@pageferry/base'
import {
  type MigrateHooks,
  type MigrationOptions,
  type MigrationResult,
  migrate,
  ServiceClient,
  type WorkloadExit,
} from '@pageferry/service/client'
import type { Lab } from './lab.js'
import type { HostName } from './paths.js'

/** Interval between checks for a migrated workload's end, which no event announces. */
const exitPollMs = 50

/** Migrates a process of one host of the lab to the other. */
export function migrateInLab(
  lab: Lab,
  pid: number,
  options: MigrationOptions & { from?: HostName } = {},
  hooks: Omit<MigrateHooks, 'reach'> = {},
): Promise<MigrationResult> {
  const { from = 'a', ...rest } = options
  const to = from === 'a' ? lab.b : lab.a
  const request = { source: lab.host(from).url('source'), destination: to.url('destination'), pid, ...rest }
  return migrate(request, { ...hooks, reach: (url) => lab.reach(url) })
}

/** Waits until a process that was migrated to `host` has ended there. */
export async function waitForExit(
  lab: Lab,
  host: HostName,
  id: string,
  signal?: AbortSignal,
): Promise<WorkloadExit> {
  const client = new ServiceClient(await lab.host(host).reach('destination'), 'destination')
  for (;;) {
    const { workload } = await client.get(id)
    if (workload?.exit !== undefined) return workload.exit
    if (workload?.where === 'gone') {
      throw new PageferryError('WORKLOAD_EXITED', `Process ${workload.pid} has ended in an unknown way.`)
    }
    await sleep(exitPollMs, undefined, { signal })
  }
}
