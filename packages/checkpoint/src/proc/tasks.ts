import { readdirSync, readFileSync } from 'node:fs'
import { readStatus } from './status.js'

/** All processes of the pid namespace of the reader. */
export function readPids(): number[] {
  return readdirSync('/proc').flatMap((name) => (/^\d+$/.test(name) ? [Number(name)] : []))
}

/** Thread ids of a process, in the namespace of the reader, the leader first. */
export function readTids(pid: number): number[] {
  const tids = readdirSync(`/proc/${pid}/task`).map(Number)
  return [pid, ...tids.filter((tid) => tid !== pid)]
}

/** Child processes of all threads. */
export function readChildren(pid: number): number[] {
  return readTids(pid).flatMap((tid) => childrenOf(pid, tid))
}

/** The process and all its descendants that there are now. */
export function readTree(pid: number): number[] {
  const tree = [pid]
  for (const member of tree) {
    try {
      tree.push(...readChildren(member))
    } catch (error) {
      // It has ended since it was listed. Its children belong to another process now.
      if (member === pid || !isGone(error)) throw error
    }
  }
  return tree
}

function childrenOf(pid: number, tid: number): number[] {
  try {
    const text = readFileSync(`/proc/${pid}/task/${tid}/children`, 'utf8')
    return text.split(' ').filter(Boolean).map(Number)
  } catch (error) {
    // A thread may have ended since it was listed. Its children belong to another thread now.
    if (tid === pid || !isGone(error)) throw error
    return []
  }
}

function isGone(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException
  return code === 'ENOENT' || code === 'ESRCH'
}

/** Thread ids in its own, innermost pid namespace. A thread that ends during the reading is left out. */
export function readNsTids(pid: number): number[] {
  const tids = readTids(pid)
  if (readStatus(pid).nsPids.length === 1) return tids
  return tids.flatMap((tid) => {
    try {
      return readStatus(pid, tid).nsPids.slice(-1)
    } catch (error) {
      if (!isGone(error)) throw error
      return []
    }
  })
}
