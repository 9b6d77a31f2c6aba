import { readdirSync } from 'node:fs'
import { readStatus } from './status.js'

/** Thread ids of a process, in the namespace of the reader, the leader first. */
export function readTids(pid: number): number[] {
  const tids = readdirSync(`/proc/${pid}/task`).map(Number)
  return [pid, ...tids.filter((tid) => tid !== pid)]
}

/** The same in its own, innermost pid namespace. A thread that ends during the reading is left out. */
export function readNsTids(pid: number): number[] {
  const tids = readTids(pid)
  if (readStatus(pid).nsPids.length === 1) return tids
  return tids.flatMap((tid) => {
    try {
      return readStatus(pid, tid).nsPids.slice(-1)
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code !== 'ENOENT' && code !== 'ESRCH') throw error
      return []
    }
  })
}
