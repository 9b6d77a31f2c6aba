import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { HostName } from './paths.js'

/**
 * Every lab host has a cgroup of its own in each hierarchy that can freeze (v1 freezer, v2). It sees it as the root
 * through a cgroup namespace. Everything that the host's services create lies below it. So `lab down` finds every
 * process and every cgroup of the lab, and nothing else.
 */
export interface Hierarchy {
  mountPoint: string
  version: 1 | 2
}

/** A killed process is gone within milliseconds unless it dumps core or waits for a disk. */
const killTimeoutMs = 10_000

export function findHierarchies(mountinfo = readFileSync('/proc/self/mountinfo', 'utf8')): Hierarchy[] {
  const found = new Map<number, Hierarchy>() // the same hierarchy may be mounted in several places: one is enough
  for (const line of mountinfo.split('\n')) {
    const [front, back] = line.split(' - ')
    if (front === undefined || back === undefined) continue
    const [type, , superOptions = ''] = back.split(' ')
    const mountPoint = front.split(' ')[4] as string
    const version = type === 'cgroup2' ? 2 : 1
    const freezes = type === 'cgroup2' || (type === 'cgroup' && superOptions.split(',').includes('freezer'))
    if (freezes && !found.has(version)) found.set(version, { mountPoint, version })
  }
  return [...found.values()]
}

export function labCgroups(name: string, host: HostName, hierarchies: Hierarchy[]): string[] {
  return hierarchies.map(({ mountPoint }) => join(mountPoint, `pageferry-lab-${name}-${host}`))
}

/** Creates them. Hierarchies that are mounted read-only (containers) are left out of the result. */
export function createCgroups(directories: string[]): string[] {
  return directories.filter((directory) => {
    try {
      mkdirSync(directory, { recursive: true })
      return true
    } catch {
      return false
    }
  })
}

/** A cgroup and everything below it, deepest first. */
function subtree(directory: string): string[] {
  let entries: string[]
  try {
    entries = readdirSync(directory, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name)
  } catch {
    return [] // removed meanwhile
  }
  return [...entries.flatMap((entry) => subtree(join(directory, entry))), directory]
}

/** Pids in a cgroup and below it, as this machine sees them. */
export function processesIn(directory: string): number[] {
  return subtree(directory).flatMap((cgroup) => {
    try {
      return readFileSync(join(cgroup, 'cgroup.procs'), 'latin1')
        .split('\n')
        .map(Number)
        .filter((pid) => pid > 0)
    } catch {
      return []
    }
  })
}

function writeIfThere(path: string, text: string): void {
  if (!existsSync(path)) return
  try {
    writeFileSync(path, text)
  } catch {
    // The cgroup was removed between the check and the write, or has nothing to thaw.
  }
}

/**
 * Kills everything in the cgroups and removes them. A frozen original must not run again for even one instruction. So
 * SIGKILL comes first, then the thaw: a v1-frozen process sees the pending signal before it returns to user space.
 */
export async function destroyCgroups(directories: string[]): Promise<void> {
  const deadline = Date.now() + killTimeoutMs
  for (;;) {
    for (const directory of directories) writeIfThere(join(directory, 'cgroup.kill'), '1')
    const pids = directories.flatMap(processesIn)
    for (const pid of pids) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {
        // already gone
      }
    }
    for (const cgroup of directories.flatMap(subtree)) {
      writeIfThere(join(cgroup, 'freezer.state'), 'THAWED')
      writeIfThere(join(cgroup, 'cgroup.freeze'), '0')
    }
    if (pids.length === 0 && removeAll(directories)) return
    if (Date.now() > deadline) {
      throw new Error(`processes ${pids.join(', ')} in ${directories.join(', ')} cannot be killed`)
    }
    await sleep(5)
  }
}

/** True when every cgroup is removed. EBUSY: a process that was just killed still counts for a moment. */
function removeAll(directories: string[]): boolean {
  for (const cgroup of directories.flatMap(subtree)) {
    try {
      rmdirSync(cgroup)
    } catch (error) {
      if ((error as { code?: string }).code !== 'ENOENT') return false
    }
  }
  return true
}
