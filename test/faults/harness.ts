import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { type HostName, type Lab, type MigrationOptions, waitForExit } from '@pageferry/lab'
import { type CreatedMigration, isFinal, type Role, ServiceClient, type Status } from '@pageferry/service'
import type { Test } from 'tap'
import { randomFrom } from '../seeds.js'

export { baseSeed, randomFrom, soak } from '../seeds.js'

const pollMs = 10
/** Each question costs a millisecond of two processors that a migration needs as well. */
const patientPollMs = 50

/** Waits until `check` answers something; throws with `what` when that takes too long. */
export async function eventually<T>(
  what: string | (() => string),
  check: () => T | Promise<T>,
  timeoutMs = 30_000,
  everyMs = pollMs,
): Promise<NonNullable<T>> {
  const deadline = Date.now() + timeoutMs
  for (;;) {
    const value = await check()
    if (value !== undefined && value !== null && value !== false) return value as NonNullable<T>
    if (Date.now() > deadline)
      throw new Error(`waited in vain for ${typeof what === 'string' ? what : what()}`)
    await sleep(everyMs)
  }
}

let program = ''

/** Compiles the workload once per test process. */
function build(): string {
  if (program === '') {
    const directory = mkdtempSync(join(tmpdir(), 'pageferry-faults-'))
    chmodSync(directory, 0o755)
    program = join(directory, 'restless')
    const source = fileURLToPath(new URL('restless.c', import.meta.url))
    execFileSync('gcc', ['-O2', '-Wall', '-Wextra', '-Werror', '-pthread', '-o', program, source])
    process.on('exit', () => rmSync(directory, { recursive: true, force: true }))
  }
  return program
}

/** One restless process, and what is asked of it from outside. */
export class Restless {
  readonly lab: Lab
  readonly directory: string
  readonly pid: number

  private constructor(lab: Lab, directory: string, pid: number) {
    this.lab = lab
    this.directory = directory
    this.pid = pid
  }

  static async start(
    lab: Lab,
    options: { mib: number; kind: 'calm' | 'wild'; uid?: number },
  ): Promise<Restless> {
    const directory = mkdtempSync(join(tmpdir(), 'pageferry-restless-'))
    chmodSync(directory, 0o777)
    const { mib, kind, uid } = options
    const command = [build(), join(directory, 'log'), join(directory, 'marker'), '1', String(mib), kind]
    const { pid } = await lab.a.start(command, { uid, cwd: directory })
    const workload = new Restless(lab, directory, pid)
    await eventually('the workload to be ready', () => workload.lines.includes('ready'))
    return workload
  }

  get lines(): string[] {
    const path = join(this.directory, 'log')
    return existsSync(path) ? readFileSync(path, 'utf8').split('\n').slice(0, -1) : []
  }

  get complaint(): string | undefined {
    return this.lines.find((line) => line.startsWith('FAILED'))
  }

  /** Its counter goes on, and it has found nothing wrong. */
  async runs(): Promise<void> {
    const before = this.lines.length
    await eventually(
      () => `the workload to go on: ${this.complaint ?? this.lines.at(-1)}`,
      () => this.complaint !== undefined || this.lines.length > before + 2,
      20_000,
    )
    if (this.complaint !== undefined) throw new Error(`the workload says: ${this.complaint}`)
  }

  fork(on: boolean): void {
    const path = join(this.directory, 'marker.fork')
    if (on) writeFileSync(path, '')
    else rmSync(path, { force: true })
  }

  /** Tells it to check everything and to end; it may still be on its way then. */
  conclude(): void {
    this.fork(false)
    writeFileSync(join(this.directory, 'marker'), '')
  }

  /** After `conclude` where nothing waits for it: on the host where it was started. */
  async endedWell(): Promise<void> {
    await eventually(
      () => `"ok" of the workload: ${this.complaint ?? this.lines.at(-1)}`,
      () => this.complaint !== undefined || this.lines.at(-1) === 'ok',
      60_000,
    )
    if (this.complaint !== undefined) throw new Error(`the workload says: ${this.complaint}`)
  }

  remove(): void {
    rmSync(this.directory, { recursive: true, force: true })
  }

  /** Everything that a migration might leave on a process, in a form that can be compared. */
  traces(host: HostName = 'a'): Record<string, unknown> {
    const pid = this.lab.host(host).outerPid(this.pid)
    if (pid === null) throw new Error(`there is no process ${this.pid} on host ${host}`)
    const status = readFileSync(`/proc/${pid}/status`, 'utf8')
    const field = (name: string) => new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(status)?.[1]
    const masks = readdirSync(`/proc/${pid}/task`).map((tid) => {
      const thread = readFileSync(`/proc/${pid}/task/${tid}/status`, 'utf8')
      return `${/^SigBlk:\s*(.*)$/m.exec(thread)?.[1]} ${/^TracerPid:\s*(.*)$/m.exec(thread)?.[1]}`
    })
    return {
      tracer: field('TracerPid'),
      threads: field('Threads'),
      masks,
      cgroup: readFileSync(`/proc/${pid}/cgroup`, 'utf8'),
      maps: readFileSync(`/proc/${pid}/maps`, 'utf8'),
      flags: (readFileSync(`/proc/${pid}/smaps`, 'utf8').match(/ u[wmi]( |$)/gm) ?? []).length,
      fds: readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`)),
      vdsoEnd: vdsoPadding(pid),
    }
  }
}

/** The bytes behind the vdso, where injected code lies while there is any. */
function vdsoPadding(pid: number): string {
  const line = readFileSync(`/proc/${pid}/maps`, 'utf8')
    .split('\n')
    .find((each) => each.endsWith('[vdso]'))
  const end = Number.parseInt(/-([0-9a-f]+) /.exec(line ?? '')?.[1] ?? '0', 16)
  const bytes = Buffer.alloc(288)
  const memory = openSync(`/proc/${pid}/mem`, 'r')
  readSync(memory, bytes, 0, bytes.length, end - bytes.length)
  closeSync(memory)
  return bytes.toString('hex')
}

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
    const { newPidNamespace, fault, verify = true, mode = 'hybrid', maxRounds, bulkLanes } = options
    const onSource = fault?.startsWith('source-') ? { injectFault: fault } : {}
    const onDestination = fault?.startsWith('destination-') ? { injectFault: fault } : {}
    const created = await source.createMigration({ pid, verify, mode, maxRounds, bulkLanes, ...onSource })
    const { id, token, dataUrl } = created
    await destination.createMigration({
      id,
      token,
      source: dataUrl,
      verify,
      newPidNamespace,
      ...onDestination,
    })
    return { id, source, destination, created }
  }

  /** Host a's process of this migration's worker (role source), or host b's, as this machine sees it. */
  worker(host: HostName, role: Role, id: string): number | undefined {
    const service = this.lab.host(host).services.get(role)
    if (service === undefined) return undefined
    return childrenOf(service.process.pid).find((pid) => commandLine(pid).includes(id))
  }
}

function commandLine(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'latin1').split('\0')
  } catch {
    return []
  }
}

export function childrenOf(pid: number): number[] {
  try {
    return readdirSync(`/proc/${pid}/task`).flatMap((tid) =>
      readFileSync(`/proc/${pid}/task/${tid}/children`, 'utf8').split(' ').filter(Boolean).map(Number),
    )
  } catch {
    return []
  }
}

export function kill9(pid: number | undefined): boolean {
  if (pid === undefined) return false
  try {
    process.kill(pid, 'SIGKILL')
    return true
  } catch {
    return false
  }
}

/**
 * kill -9 of the restore worker, some times within so many milliseconds after the handover.
 * @returns `onStatus` is for whoever watches the migration; `nrKilled` says how often there was one to kill
 */
export function killsOfWorker(
  lab: Lab,
  nrKills: number,
  withinMs: number,
  seed: number,
): { onStatus(status: Status): void; nrKilled: number } {
  const driver = new Driver(lab)
  const random = randomFrom(seed)
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
    timeoutMs,
    patientPollMs,
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
    timeoutMs,
  )
}

/** It came to host b and exited there with status 0. */
export async function endsWellOn(lab: Lab, workload: Restless, id: string): Promise<void> {
  workload.conclude()
  const exit = await Promise.race([
    waitForExit(lab, 'b', id),
    sleep(60_000, undefined, { ref: false }).then(() => {
      throw new Error(`the workload does not end: ${workload.lines.at(-1)}`)
    }),
  ])
  if (exit.kind !== 'exited' || exit.value !== 0 || workload.lines.at(-1) !== 'ok') {
    throw new Error(
      `the workload ended with ${JSON.stringify(exit)}: ${workload.complaint ?? workload.lines.at(-1)}`,
    )
  }
}

/** The counter of the log has no gap: one process wrote it, in one go. */
export function hasNoGap(workload: Restless): boolean {
  const numbers = workload.lines.filter((line) => /^\d+$/.test(line)).map(Number)
  return numbers.every((number, i) => number === i + 1)
}

/** Below each host's pid 1 nothing is left but its services, and no cgroup but the host's own. */
export async function nothingLeft(lab: Lab, allowed: number[] = [], timeoutMs = 20_000): Promise<void> {
  const known = () => {
    const services = [lab.a, lab.b].flatMap((host) =>
      [...host.services.values()].map(({ process }) => process.pid),
    )
    const inits = [lab.state.hosts.a, lab.state.hosts.b].flatMap((host) =>
      host === undefined
        ? []
        : [host.init.pid, host.launcher.pid, ...childrenOf(host.init.pid).filter(isSleep)],
    )
    return new Set([...services, ...inits, ...allowed])
  }
  const strays = () => {
    const cgroups = Object.values(lab.state.cgroups).flat()
    const found = cgroups.flatMap((directory) => below(directory))
    const pids = new Set(
      cgroups.flatMap((directory) => [directory, ...below(directory)].flatMap(processesIn)),
    )
    const expected = known()
    const processes = [...pids]
      .filter((pid) => !expected.has(pid))
      .map((pid) => `${pid} ${commandLine(pid).join(' ')}`)
    return [...processes.filter((text) => !/^\d+ $/.test(text)), ...found]
  }
  await eventually(
    () => `the end of ${strays().join(', ')}`,
    () => strays().length === 0,
    timeoutMs,
  )
}

function isSleep(pid: number): boolean {
  return commandLine(pid)[0] === 'sleep'
}

function below(directory: string): string[] {
  if (!existsSync(directory)) return []
  return readdirSync(directory, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .flatMap((entry) => [join(directory, entry.name), ...below(join(directory, entry.name))])
}

function processesIn(directory: string): number[] {
  try {
    return readFileSync(join(directory, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean).map(Number)
  } catch {
    return []
  }
}

/** What the services and their workers wrote last, for a failure. */
export function logsOf(lab: Lab, nrLines = 40): string {
  return [lab.a, lab.b]
    .flatMap((host) => ['source', 'destination'].map((role) => join(host.directory, `${role}.log`)))
    .filter((path) => existsSync(path))
    .map(
      (path) => `${path}\n${readFileSync(path, 'utf8').split('\n').slice(-nrLines).map(shorten).join('\n')}`,
    )
    .join('\n')
}

function shorten(line: string): string {
  try {
    const { time, name, msg, level: _level, pid, hostname: _hostname, ...rest } = JSON.parse(line)
    return `${time} ${name} ${pid} ${msg} ${JSON.stringify(rest)}`.slice(0, 400)
  } catch {
    return line.slice(0, 400)
  }
}

/** Runs the body of a test; when it fails, the logs come with it. */
export async function explained(t: Test, lab: Lab, body: () => Promise<void>): Promise<void> {
  try {
    await body()
  } catch (error) {
    t.fail((error as Error).message)
  }
  if (!t.passing()) t.comment(logsOf(lab))
}

/** The lazy phase of a small workload then takes seconds. Both directions share it: host a sends nearly everything. */
export async function slowLink(lab: Lab, mbit: number): Promise<void> {
  const limit = `tc qdisc replace dev eth0 root tbf rate ${mbit}mbit burst 256kb latency 400ms`
  const { status, stderr } = await lab.a.run(['sh', '-c', limit], { cwd: '/' })
  if (status !== 0) throw new Error(`tc: ${stderr}`)
}
