import { readFileSync } from 'node:fs'
import { processes } from '@pageferry/kernel'
import { cgroupOf, directoryOf, hierarchies } from '../../cgroups.js'

/** Sets of processors: bit n%8 of byte n>>3 stands for processor n. */

/**
 * The processors that a thread was bound to (sched_setaffinity(2)); null if it may use its whole cpuset. The kernel shows one
 * mask for both. But only the first belongs to the thread. The second belongs to the host.
 */
export function askedCpus(pid: number, tid: number): Uint8Array | null {
  const mask = processes.getAffinity(tid)
  if (isWithin(processes.getAffinity(0), mask)) return null
  const allowed = cpusetOf(pid)
  return allowed !== null && isWithin(allowed, mask) ? null : mask
}

/** "0-2,7" as a set (cpuset(7), "List format"). */
export function parseCpus(list: string): Uint8Array {
  const numbers = [...list.matchAll(/(\d+)(?:-(\d+))?/g)].flatMap(([, first, last = first]) =>
    Array.from({ length: Number(last) - Number(first) + 1 }, (_, i) => Number(first) + i),
  )
  const set = new Uint8Array((Math.max(0, ...numbers) >> 3) + 1)
  for (const cpu of numbers) set[cpu >> 3] |= 1 << (cpu & 7)
  return set
}

export function describeCpus(set: Uint8Array): string {
  const numbers = [...set].flatMap((bits, i) =>
    Array.from({ length: 8 }, (_, bit) => i * 8 + bit).filter((cpu) => (bits & (1 << (cpu & 7))) !== 0),
  )
  return numbers.length === 1 ? `processor ${numbers[0]}` : `processors ${numbers.join(', ')}`
}

function isWithin(inner: Uint8Array, outer: Uint8Array): boolean {
  return inner.every((bits, i) => (bits & ~(outer[i] ?? 0)) === 0)
}

/** Processors of the cpuset of a process; null if no mount shows it. */
function cpusetOf(pid: number): Uint8Array | null {
  for (const hierarchy of hierarchies('cpuset')) {
    const cgroup = cgroupOf(pid, hierarchy, 'cpuset')
    const directory = cgroup === null ? null : directoryOf(cgroup, hierarchy)
    const name = hierarchy.version === 2 ? 'cpuset.cpus.effective' : 'cpuset.effective_cpus'
    try {
      if (directory !== null) return parseCpus(readFileSync(`${directory}/${name}`, 'utf8'))
    } catch {
      // The controller is not enabled there.
    }
  }
  return null
}
