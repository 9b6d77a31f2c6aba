import { readFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { cgroupOf, directoryOf, type Hierarchy, hierarchies } from './cgroups.js'

/** The memory that a process restored here can have, and what limits it. */
export interface MemoryRoom {
  bytes: number
  limitedBy: string
}

/** Limit and use of a cgroup, including its descendants. */
const files = {
  1: { limit: 'memory.limit_in_bytes', used: 'memory.usage_in_bytes' },
  2: { limit: 'memory.max', used: 'memory.current' },
} as const

/**
 * The machine's available memory, or less if a memory cgroup of the skeleton allows less. UFFDIO_COPY charges that
 * cgroup, whose OOM killer would end the skeleton in the middle of the migration.
 */
export function memoryRoom(): MemoryRoom {
  const available = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1]
  let room: MemoryRoom = {
    bytes: Number(available ?? 0) * 1024,
    limitedBy: 'available memory of the machine',
  }
  for (const hierarchy of hierarchies('memory')) {
    for (const directory of aboveSkeleton(hierarchy)) {
      const bytes = roomIn(directory, hierarchy.version)
      if (bytes < room.bytes) room = { bytes, limitedBy: `the memory cgroup ${directory}` }
    }
  }
  return room
}

/**
 * The visible cgroups that will limit the skeleton. In the hierarchy of the freezer it gets one at the top
 * (Freezer.atTop); everywhere else it inherits ours.
 */
function* aboveSkeleton(hierarchy: Hierarchy): Generator<string> {
  const { mount } = hierarchy
  if (hierarchies('freezer')[0]?.mount === mount) {
    yield mount
    return
  }
  const own = cgroupOf(process.pid, hierarchy, 'memory')
  let directory = own === null ? null : directoryOf(own, hierarchy)
  if (directory === null) return
  for (; directory.length > mount.length; directory = dirname(directory)) yield directory
  yield mount
}

function roomIn(directory: string, version: 1 | 2): number {
  const read = (name: string): string => readFileSync(`${directory}/${name}`, 'utf8').trim()
  try {
    const limit = read(files[version].limit)
    return limit === 'max' ? Number.POSITIVE_INFINITY : Number(limit) - Number(read(files[version].used))
  } catch (error) {
    // The top of a version 2 hierarchy has no limit, nor has any cgroup where the controller is not enabled.
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    return Number.POSITIVE_INFINITY
  }
}
