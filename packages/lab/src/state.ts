import {
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { PageferryError } from '@pageferry/base'
import { type HostName, hostDir, hostNames, labDir, labsDir, subnetsDir } from './paths.js'

/** Identifies a process, so that it cannot be confused with a later one with the same pid. */
export interface ProcessIdentity {
  pid: number
  /** Field 22 of /proc/PID/stat, in clock ticks. */
  startTime: string
}

export interface HostState {
  /** The host's pid 1, as this machine sees it. */
  init: ProcessIdentity
  /** Parent of `init` outside the host; the host dies with it. */
  launcher: ProcessIdentity
  address: string
}

/** Contents of state.json: enough for `lab down` after any crash. */
export interface LabState {
  version: 1
  name: string
  subnet: number
  createdAt: string
  /** The process that brings it up; `ready` is true once it has. */
  maker: ProcessIdentity
  /** Cgroup directories of each host, one per hierarchy. */
  cgroups: Record<HostName, string[]>
  hosts: Partial<Record<HostName, HostState>>
  ready: boolean
}

const hasCode = (error: unknown, code: string): boolean => (error as { code?: string }).code === code

/** Identity of a live process, or null when there is none. */
export function identify(pid: number): ProcessIdentity | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return fields[0] === 'Z' || fields[0] === 'X' ? null : { pid, startTime: fields[19] as string }
  } catch (error) {
    if (hasCode(error, 'ENOENT') || hasCode(error, 'ESRCH')) return null
    throw error
  }
}

export function isAlive(process: ProcessIdentity): boolean {
  return identify(process.pid)?.startTime === process.startTime
}

/** All pids in this machine's /proc, unordered. */
function allPids(): number[] {
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)
}

/** Children of a process, by their parent field: /proc/PID/task/TID/children needs a kernel option. */
export function childrenOf(parent: number): number[] {
  return allPids().filter((pid) => {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
      return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]) === parent
    } catch {
      return false // it ended between the listing and the reading
    }
  })
}

/**
 * Pid on this machine of a process that a lab host knows as `pid`; null when there is none. Both hosts have the same
 * depth of pid namespaces, so the network namespace distinguishes them. A migrated process may be one level deeper.
 */
export function outerPid(hostInit: number, pid: number): number | null {
  const net = readlinkSync(`/proc/${hostInit}/ns/net`)
  for (const candidate of allPids()) {
    try {
      const status = readFileSync(`/proc/${candidate}/status`, 'latin1')
      const nested = /^NSpid:\t(.*)$/m.exec(status)?.[1]?.split('\t').map(Number)
      if (nested?.[1] === pid && readlinkSync(`/proc/${candidate}/ns/net`) === net) return candidate
    } catch {
      // it ended, or it is a zombie whose namespaces can no longer be read
    }
  }
  return null
}

export function readState(name: string): LabState | null {
  try {
    return JSON.parse(readFileSync(join(labDir(name), 'state.json'), 'utf8')) as LabState
  } catch (error) {
    // A half-made lab has no state yet. A torn file cannot occur: it is renamed into place.
    if (hasCode(error, 'ENOENT') || hasCode(error, 'ENOTDIR')) return null
    throw error
  }
}

export function writeState(state: LabState): void {
  const path = join(labDir(state.name), 'state.json')
  writeFileSync(`${path}.new`, `${JSON.stringify(state, null, 2)}\n`)
  renameSync(`${path}.new`, path)
}

/** Names of all labs of this machine, whole or half-made. */
export function listLabs(): string[] {
  try {
    return readdirSync(labsDir).sort()
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return []
    throw error
  }
}

/** Returns a lab that is up. Otherwise throws a sentence with the reason. */
export function requireLab(name: string): LabState & { hosts: Record<HostName, HostState> } {
  const state = readState(name)
  if (state === null) {
    throw new PageferryError(
      'BAD_REQUEST',
      `There is no lab "${name}"; "pageferry lab up ${name}" makes one.`,
    )
  }
  for (const host of hostNames) {
    const init = state.hosts[host]?.init
    if (init === undefined || !isAlive(init)) {
      throw new PageferryError(
        'BAD_REQUEST',
        `Lab "${name}" is not running (host ${host} is down); "pageferry lab down ${name}" removes what is left of it.`,
      )
    }
  }
  return state as LabState & { hosts: Record<HostName, HostState> }
}

/**
 * Reserves the name and a subnet number. Both are reserved by exclusive creation of a file, so two labs that start at
 * the same time never share either.
 */
export function claimLab(name: string, cgroups: LabState['cgroups']): LabState {
  mkdirSync(labsDir, { recursive: true })
  mkdirSync(subnetsDir, { recursive: true })
  try {
    mkdirSync(labDir(name))
  } catch (error) {
    if (!hasCode(error, 'EEXIST')) throw error
    throw new PageferryError(
      'CONFLICT',
      `There is a lab "${name}" already; "pageferry lab down ${name}" removes it.`,
    )
  }
  const subnet = claimSubnet(name)
  const createdAt = new Date().toISOString()
  const maker = identify(process.pid) as ProcessIdentity
  const state: LabState = { version: 1, name, subnet, createdAt, maker, cgroups, hosts: {}, ready: false }
  writeState(state)
  for (const host of hostNames) mkdirSync(join(hostDir(name, host), 'out'), { recursive: true })
  return state
}

function claimSubnet(name: string): number {
  for (let subnet = 1; subnet <= 254; subnet++) {
    try {
      writeFileSync(join(subnetsDir, String(subnet)), name, { flag: 'wx' })
      return subnet
    } catch (error) {
      if (!hasCode(error, 'EEXIST')) throw error
    }
  }
  rmSync(labDir(name), { recursive: true, force: true })
  throw new PageferryError('CONFLICT', 'All 254 lab subnets are taken; bring labs down that are not needed.')
}

/** Releases name and subnet. The subnets are searched by name: the lab may have died before its state was written. */
export function releaseLab(name: string): void {
  const directory = labDir(name)
  try {
    for (const subnet of readdirSync(subnetsDir)) {
      const path = join(subnetsDir, subnet)
      if (readFileSync(path, 'utf8') === name) rmSync(path, { force: true })
    }
  } catch (error) {
    if (!hasCode(error, 'ENOENT')) throw error
  }
  rmSync(directory, { recursive: true, force: true })
}
