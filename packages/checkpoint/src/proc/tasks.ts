import { readdirSync } from 'node:fs'

/** Thread ids of a process, in the namespace of the reader, the leader first. */
export function readTids(pid: number): number[] {
  const tids = readdirSync(`/proc/${pid}/task`).map(Number)
  return [pid, ...tids.filter((tid) => tid !== pid)]
}
