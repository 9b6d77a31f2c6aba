import { type Stats, statSync } from 'node:fs'
import { canLockFile, type NeededLock, neededLocks, whoHoldsIt } from './kinds/descriptors/file-locks.js'
import { kindOf } from './kinds/descriptors/registry.js'
import { namedLink } from './kinds/ghosts/find.js'
import { refusal } from './problems.js'
import { readFds } from './proc/fdinfo.js'
import { readMaps } from './proc/maps.js'

/** A file that the workload has mapped or open. The destination must have the same one under the same path. */
export interface NeededFile {
  path: string
  bytes: number
  write: boolean
  /** For programs and libraries: another size is another version, and the process would crash on it. */
  exactSize: boolean
  /** That the workload has on it; the destination tries the first ones. */
  locks: NeededLock[]
}

/**
 * Lists files of the memory map and of the descriptors, and the working directory, each once. Skips files that
 * preflight refuses.
 */
export function neededFiles(pid: number): NeededFile[] {
  const files = new Map<string, NeededFile>()
  const add = (path: string, write: boolean, mapped: boolean, locks: NeededLock[] = []): void => {
    const stat = tryStat(path)
    const known = files.get(path)
    files.set(path, {
      path,
      bytes: stat?.isFile() === true ? stat.size : 0,
      write: write || known?.write === true,
      locks: [...(known?.locks ?? []), ...locks],
      exactSize: ((mapped && !write) || known?.exactSize === true) && stat?.isFile() === true,
    })
  }
  for (const area of readMaps(pid)) {
    if (!area.name.startsWith('/') || area.name.endsWith(' (deleted)') || area.name.startsWith('/dev/zero'))
      continue
    add(area.name, area.shared && area.write, true)
  }
  const cwd = namedLink(`/proc/${pid}/cwd`)
  if (cwd.ghost === undefined) add(cwd.path, false, false)
  const accessMode = 3
  for (const info of readFds(pid)) {
    const path = kindOf(info)?.neededPath?.(info)
    // The workload's own files in /proc move with it.
    if (path === undefined || path.startsWith(`/proc/${pid}/`)) continue
    add(path, (info.flags & accessMode) !== 0, false, neededLocks(info))
  }
  return [...files.values()]
}

/** Throws REFUSED and names every file that is missing here or differs. */
export function checkNeededFiles(files: NeededFile[]): void {
  const problems = files.flatMap((file) => {
    const stat = tryStat(file.path)
    if (stat === null) return [{ what: file.path, reason: 'the destination has no such file' }]
    if (file.exactSize && stat.size !== file.bytes) {
      return [
        {
          what: file.path,
          reason: `it has ${stat.size} bytes on the destination and ${file.bytes} on the source`,
        },
      ]
    }
    if (stat.isFile() && !canLockFile(file.path, file.locks)) {
      return [{ what: file.path, reason: `a lock on it is held on the destination: ${whoHoldsIt}` }]
    }
    return []
  })
  if (problems.length > 0) throw refusal('files that the workload has mapped or open', problems)
}

function tryStat(path: string): Stats | null {
  return statSync(path, { throwIfNoEntry: false }) ?? null
}
