import { existsSync, readFileSync } from 'node:fs'
import { dirname } from 'node:path'

/** How much memory a process that is built here can have, and what sets that limit. */
export interface MemoryRoom {
  bytes: number
  limitedBy: string
}

/**
 * The machine's available memory, or less where a v1 memory cgroup that the skeleton inherits from this process
 * says so. (In the v2 hierarchy the skeleton gets a cgroup of its own at the top.) UFFDIO_COPY charges the
 * skeleton's cgroup, whose OOM killer would end it in the middle of the migration.
 */
export function memoryRoom(): MemoryRoom {
  const available = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1]
  let room: MemoryRoom = {
    bytes: Number(available ?? 0) * 1024,
    limitedBy: 'available memory of the machine',
  }
  for (const directory of memoryCgroups()) {
    const limit = Number(readFileSync(`${directory}/memory.limit_in_bytes`, 'utf8'))
    const used = Number(readFileSync(`${directory}/memory.usage_in_bytes`, 'utf8'))
    if (limit - used < room.bytes) room = { bytes: limit - used, limitedBy: `the memory cgroup ${directory}` }
  }
  return room
}

/** Our v1 memory cgroup and every one above it that is visible. */
function* memoryCgroups(): Generator<string> {
  const mount = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' '))
    .find((fields) => fields[2] === 'cgroup' && fields[3]?.split(',').includes('memory'))?.[1]
  const own = readFileSync('/proc/self/cgroup', 'utf8')
    .split('\n')
    .map((line) => line.split(':'))
    .find(([, controllers]) => controllers?.split(',').includes('memory'))?.[2]
  if (mount === undefined || own === undefined) return
  for (let directory = `${mount}${own}`; directory.length > mount.length; directory = dirname(directory)) {
    if (existsSync(`${directory}/memory.limit_in_bytes`)) yield directory
  }
}
