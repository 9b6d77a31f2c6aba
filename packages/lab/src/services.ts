import { closeSync, openSync, readFileSync, readSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError } from '@pageferry/base'
import { type Role, SERVICE_NAMES, SERVICE_PORTS } from '@pageferry/service/client'
import { hostLog, startInHost } from './exec.js'
import { type HostName, hostAddress, hostDir, pageferryProgram } from './paths.js'
import type { Reach } from './relay.js'
import { type HostState, identify, isAlive, type LabState, outerPid, type ProcessIdentity } from './state.js'

export interface RunningService {
  /** Pid as the host sees it. */
  pid: number
  /** Identity as this machine sees it. */
  process: ProcessIdentity
}

/** Four Node processes on two cores are up in two to three seconds. A loaded CI machine takes several times that. */
const startTimeoutMs = 60_000
const pollMs = 25
/** A service listens before it answers. A connection that got lost meanwhile must not use up the whole time. */
const answerTimeoutMs = 5_000

export function serviceUrl(state: LabState, host: HostName, role: Role): string {
  return `http://${hostAddress(state.subnet, host)}:${SERVICE_PORTS[role]}`
}

/** Command line of one service in a host. Tests replace it by another program. */
export type ServiceCommand = (state: LabState, host: HostName, role: Role) => string[]

/** @param spareWorkers undefined: as many as a service has by default */
export function ourServices(spareWorkers?: number): ServiceCommand {
  return (state, host, role) => [
    process.execPath,
    pageferryProgram,
    SERVICE_NAMES[role],
    '--listen',
    new URL(serviceUrl(state, host, role)).host,
    '--state-dir',
    join(hostDir(state.name, host), role),
    ...(spareWorkers === undefined ? [] : ['--spare-workers', String(spareWorkers)]),
  ]
}

/** Starts a service and returns at once; `waitForService` waits until it answers. */
export async function startService(
  state: LabState,
  host: HostName,
  role: Role,
  command: ServiceCommand,
): Promise<RunningService> {
  const { pid } = await startInHost(state, host, command(state, host, role), {
    cwd: '/',
    output: hostLog(state.name, host, role),
  })
  const seen = outerPid((state.hosts[host] as HostState).init.pid, pid)
  const identity = seen === null ? null : identify(seen)
  if (identity === null) throw startFailure(state, host, role)
  return { pid, process: identity }
}

/** Resolves when the service answers on /healthz; throws with the end of its log when it died or never answers. */
export async function waitForService(
  state: LabState,
  host: HostName,
  role: Role,
  service: RunningService,
  reach: Reach,
): Promise<void> {
  const url = `${await reach.resolve(serviceUrl(state, host, role))}/healthz`
  const deadline = Date.now() + startTimeoutMs
  for (;;) {
    try {
      const response = await fetch(url, { signal: AbortSignal.timeout(answerTimeoutMs) })
      await response.arrayBuffer()
      if (response.ok) return
    } catch {
      // not listening yet
    }
    if (!isAlive(service.process) || Date.now() > deadline) throw startFailure(state, host, role)
    await sleep(pollMs)
  }
}

function startFailure(state: LabState, host: HostName, role: Role): PageferryError {
  const log = hostLog(state.name, host, role)
  return new PageferryError(
    'INTERNAL',
    `The ${SERVICE_NAMES[role]} of host ${host} did not start. ${log} ends with:\n${lastLines(log)}`,
  )
}

const tailBytes = 2000

function lastLines(path: string): string {
  const size = statSync(path).size
  if (size <= tailBytes) return readFileSync(path, 'utf8').trim()
  const buffer = Buffer.alloc(tailBytes)
  const file = openSync(path, 'r')
  readSync(file, buffer, 0, tailBytes, size - tailBytes)
  closeSync(file)
  return buffer.toString('utf8').trim()
}
