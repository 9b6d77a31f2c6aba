import { PageferryError } from '@pageferry/base'
import { ROLES, type Role } from '@pageferry/service/client'
import { createCgroups, findHierarchies, labCgroups } from './cgroups.js'
import { takeDown } from './down.js'
import {
  type RunResult,
  runInHost,
  type StartedProcess,
  type StartOptions,
  startInHost,
  superviseInHost,
} from './exec.js'
import { connectHosts, startHost } from './host.js'
import { type HostName, hostDir, hostNames } from './paths.js'
import { Reach } from './relay.js'
import {
  ourServices,
  type RunningService,
  type ServiceCommand,
  serviceUrl,
  startService,
  waitForService,
} from './services.js'
import {
  claimLab,
  type HostState,
  isAlive,
  type LabState,
  outerPid,
  readState,
  requireLab,
  writeState,
} from './state.js'
import { Warden } from './warden.js'

export interface LabOptions {
  /** Default: a name that no other lab has. */
  name?: string
  /**
   * false: bare hosts, no services. 'a-to-b': only host a's dump-service and host b's restore-service, for migrations
   * in one direction. That takes half of the processor time to start.
   */
  services?: boolean | 'a-to-b'
  /** Spare workers of each service. Each costs a second of processor time before and after a migration. */
  spareWorkers?: number
  /** Default: our services. */
  serviceCommand?: ServiceCommand
  /** Take the lab down when this process ends, however it ends. */
  owned?: boolean
  /** Gives up when the signal aborts; nothing of the lab is left then. */
  signal?: AbortSignal
}

/**
 * First pids for workloads, once the services are up. A migrated process keeps its pid, so the two hosts must not give
 * out the same ones. The range below is left to the services.
 */
const firstPid: Record<HostName, number> = { a: 10_000, b: 20_000 }

/** One of the two machines of a lab. */
export class LabHost {
  readonly #state: LabState
  readonly #reach: Reach
  readonly #serviceCommand: ServiceCommand
  readonly name: HostName
  readonly services = new Map<Role, RunningService>()

  constructor(state: LabState, name: HostName, reach: Reach, serviceCommand: ServiceCommand) {
    this.#state = state
    this.#reach = reach
    this.#serviceCommand = serviceCommand
    this.name = name
  }

  get address(): string {
    return (this.#state.hosts[this.name] as HostState).address
  }

  /** Directory of the host's logs and the services' state. */
  get directory(): string {
    return hostDir(this.#state.name, this.name)
  }

  /** URL of the service for the other host of the lab. */
  url(role: Role): string {
    return serviceUrl(this.#state, this.name, role)
  }

  /** URL of the service for this process: through a relay that ends with the lab object. */
  reach(role: Role): Promise<string> {
    return this.#reach.resolve(this.url(role))
  }

  /** Starts a process, detached, and returns its pid as this host sees it. */
  start(command: string[], options?: StartOptions): Promise<StartedProcess> {
    return startInHost(this.#state, this.name, command, options)
  }

  /** Like `start`, with the exit status. */
  supervise(command: string[], options?: StartOptions): Promise<StartedProcess & { exit: Promise<number> }> {
    return superviseInHost(this.#state, this.name, command, options)
  }

  /** Runs a command to its end and captures its output. */
  run(command: string[], options?: Omit<StartOptions, 'output'>): Promise<RunResult> {
    return runInHost(this.#state, this.name, command, options)
  }

  /** Pid on this machine of the host's process `pid`, null when there is none. */
  outerPid(pid: number): number | null {
    return outerPid((this.#state.hosts[this.name] as HostState).init.pid, pid)
  }

  /** Starts a service (again) and waits until it answers. */
  async startService(role: Role, command: ServiceCommand = this.#serviceCommand): Promise<RunningService> {
    const service = await startService(this.#state, this.name, role, command)
    this.services.set(role, service)
    await waitForService(this.#state, this.name, role, service, this.#reach)
    return service
  }
}

/** Two hosts, a and b, on this machine. */
export class Lab {
  readonly #state: LabState
  readonly #reach = new Reach()
  readonly #warden: Warden | null
  readonly a: LabHost
  readonly b: LabHost

  private constructor(state: LabState, warden: Warden | null, serviceCommand: ServiceCommand) {
    this.#state = state
    this.#warden = warden
    this.a = new LabHost(state, 'a', this.#reach, serviceCommand)
    this.b = new LabHost(state, 'b', this.#reach, serviceCommand)
  }

  /** Makes a lab. On failure nothing of it is left. */
  static async up(options: LabOptions = {}): Promise<Lab> {
    requireRoot()
    const name = options.name ?? freeName()
    await clearRemains(name)
    const hierarchies = findHierarchies()
    const cgroups = {
      a: labCgroups(name, 'a', hierarchies),
      b: labCgroups(name, 'b', hierarchies),
    }
    const state = claimLab(name, cgroups)
    const warden = new Warden(name)
    const lab = new Lab(state, warden, options.serviceCommand ?? ourServices(options.spareWorkers))
    try {
      await lab.#build(options)
    } catch (error) {
      await lab.down()
      throw error
    }
    if (options.owned !== true) warden.dismiss()
    return lab
  }

  /** A lab that is already up. */
  static open(name: string): Lab {
    requireRoot()
    return new Lab(requireLab(name), null, ourServices())
  }

  async #build(options: LabOptions): Promise<void> {
    const state = this.#state
    const hierarchies = findHierarchies()
    for (const host of hostNames) state.cgroups[host] = createCgroups(state.cgroups[host])
    await Promise.all(
      hostNames.map(async (host) => {
        state.hosts[host] = await startHost(state.name, host, state.subnet, state.cgroups[host], hierarchies)
        writeState(state)
      }),
    )
    await connectHosts(state.hosts.a as HostState, state.hosts.b as HostState)
    if (options.services !== false) {
      const wanted = ({ name }: LabHost, role: Role): boolean =>
        options.services !== 'a-to-b' || (name === 'a') === (role === 'source')
      const jobs = [this.a, this.b].flatMap((host) =>
        ROLES.filter((role) => wanted(host, role)).map((role) => host.startService(role)),
      )
      await Promise.all(jobs)
    }
    for (const host of hostNames) {
      // From inside: the file concerns the pid namespace of the process that writes it.
      const script = `echo ${firstPid[host] - 1} > /proc/sys/kernel/ns_last_pid`
      const { status, stderr } = await runInHost(state, host, ['sh', '-c', script], { cwd: '/' })
      if (status !== 0)
        throw new PageferryError('UNSUPPORTED_HOST', `Pids of host ${host} cannot be set: ${stderr}`)
    }
    state.ready = true
    writeState(state)
  }

  get name(): string {
    return this.#state.name
  }

  get state(): LabState {
    return this.#state
  }

  host(name: HostName): LabHost {
    return name === 'a' ? this.a : this.b
  }

  /** A URL on this machine that reaches `url` in the lab, until `close` or `down`. */
  reach(url: string): Promise<string> {
    return this.#reach.resolve(url)
  }

  /** Closes this object and leaves the lab up. */
  close(): void {
    this.#reach.close()
  }

  async down(): Promise<void> {
    this.#reach.close()
    await takeDown(this.name)
    this.#warden?.dismiss()
  }
}

function requireRoot(): void {
  if (process.getuid?.() !== 0) {
    throw new PageferryError(
      'NOT_PERMITTED',
      'A lab is made of namespaces and cgroups, which only root can set up.',
    )
  }
}

/** Removes a lab of that name that is dead or was never finished. Any other may be in use. */
async function clearRemains(name: string): Promise<void> {
  const state = readState(name)
  if (state === null) return
  const dead = state.ready
    ? Object.values(state.hosts).every((host) => !isAlive(host.init))
    : !isAlive(state.maker)
  if (dead) await takeDown(name)
}

let labsMade = 0

/** `PAGEFERRY_LAB_PREFIX` lets a test run find and remove labs that its tests left behind. */
function freeName(): string {
  labsMade += 1
  return `${process.env.PAGEFERRY_LAB_PREFIX ?? 'lab'}-${process.pid}-${labsMade}`
}

/**
 * Runs `use` with a lab of its own and takes it down afterwards, whatever happens: an exception, an abort, or the end
 * of this process, even by SIGKILL (see Warden).
 */
export async function withLab<T>(use: (lab: Lab) => Promise<T>, options: LabOptions = {}): Promise<T> {
  const { signal } = options
  signal?.throwIfAborted()
  const lab = await Lab.up({ ...options, owned: true })
  let giveUp: () => void = () => {}
  const aborted = new Promise<never>((_, reject) => {
    giveUp = () => reject(signal?.reason)
    signal?.addEventListener('abort', giveUp)
    if (signal?.aborted) giveUp()
  })
  aborted.catch(() => {})
  try {
    return await Promise.race([use(lab), aborted])
  } finally {
    signal?.removeEventListener('abort', giveUp)
    await lab.down()
  }
}
