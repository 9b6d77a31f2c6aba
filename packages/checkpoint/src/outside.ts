import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { fds } from '@pageferry/kernel'
import { kindOf } from './kinds/descriptors/registry.js'
import { isSharedAnonymous } from './kinds/memory-map/areas.js'
import { confirmed, type Problem } from './problems.js'
import { type FdInfo, readFdInfo, readFds } from './proc/fdinfo.js'
import { readMaps } from './proc/maps.js'
import { readPids, readTree } from './proc/tasks.js'

/**
 * Finds what the workload shares with a process that is not moved. The move would make two of it without a word: a
 * daemon that forked twice, for example, still has the pipes and the shared memory of the process that started it.
 *
 * This looks at every process that /proc shows here, so it is for the preflight only: 300 processes take some 20 ms.
 */
export function checkOutside(pid: number): Problem[] {
  return confirmed(() => look(pid))
}

function look(pid: number): Problem[] {
  const [files, areas] = [sharable(readFds(pid)), sharedAreas(pid)]
  // The descendants are another matter: see checkFamily.
  const family = new Set(readTree(pid))
  return readPids()
    .filter((other) => !family.has(other))
    .flatMap((other) => {
      try {
        return [
          ...checkTables(pid, other),
          ...checkFiles(pid, files, other),
          ...checkAreas(areas, other),
        ].map(({ what, has }) => ({ what, reason: reasonOf(other, has) }))
      } catch (error) {
        // The other process has ended, is a kernel thread, or is not ours to see.
        if (isGone(error)) return []
        throw error
      }
    })
}

interface Shared {
  what: string
  /** What the other process has. */
  has: string
}

function isGone(error: unknown): boolean {
  return ['ENOENT', 'ESRCH', 'EACCES', 'EPERM'].includes((error as NodeJS.ErrnoException).code ?? '')
}

function reasonOf(other: number, has: string): string {
  const comm = readFileSync(`/proc/${other}/comm`, 'utf8').trimEnd()
  return `process ${other} (${comm}), which is not moved with it, has ${has}: the two would come apart`
}

/** Threads are no processes of their own in /proc, so these are clone(2) without CLONE_THREAD, and vfork(2). */
function checkTables(pid: number, other: number): Shared[] {
  const what = `process ${pid}`
  const shares = (kind: number): boolean => fds.kcmp(pid, other, kind) === 0
  return [
    ...(shares(fds.KCMP_VM) ? [{ what, has: 'the same memory (CLONE_VM)' }] : []),
    ...(shares(fds.KCMP_FILES) ? [{ what, has: 'the same descriptors (CLONE_FILES)' }] : []),
    ...(shares(fds.KCMP_FS) ? [{ what, has: 'the same working directory (CLONE_FS)' }] : []),
  ]
}

/** Descriptors that another process may share, by the text of their links. */
function sharable(infos: FdInfo[]): Map<string, FdInfo[]> {
  const files = new Map<string, FdInfo[]>()
  for (const info of infos) {
    if (kindOf(info)?.outside?.(info) === undefined) continue
    files.set(info.target, [...(files.get(info.target) ?? []), info])
  }
  return files
}

function checkFiles(pid: number, files: Map<string, FdInfo[]>, other: number): Shared[] {
  if (files.size === 0) return []
  const found = new Map<FdInfo, Shared>()
  for (const name of readdirSync(`/proc/${other}/fd`)) {
    try {
      const candidates = files.get(readlinkSync(`/proc/${other}/fd/${name}`))
      if (candidates === undefined) continue
      const theirs = readFdInfo(other, Number(name))
      for (const info of candidates) {
        const has = sharedPart(pid, info, other, theirs)
        if (has !== null) found.set(info, { what: `descriptor ${info.fd} (${info.target})`, has })
      }
    } catch (error) {
      // It has closed this one.
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    }
  }
  return [...found.values()]
}

function sharedPart(pid: number, ours: FdInfo, other: number, theirs: FdInfo): string | null {
  const sharing = kindOf(ours)?.outside?.(ours)
  if (sharing === undefined) return null
  if (sharing.object !== undefined) {
    return kindOf(theirs)?.outside?.(theirs)?.object === sharing.object ? 'it, too' : null
  }
  return fds.kcmp(pid, other, fds.KCMP_FILE, ours.fd, theirs.fd) === 0 ? 'its file position, too' : null
}

/** The workload's areas of shared anonymous memory, by device and inode. */
function sharedAreas(pid: number): Map<string, string> {
  const areas = new Map<string, string>()
  for (const line of readMaps(pid).filter(isSharedAnonymous)) {
    areas.set(`${line.device}:${line.inode}`, `memory area ${line.start.toString(16)}000`)
  }
  return areas
}

function checkAreas(areas: Map<string, string>, other: number): Shared[] {
  if (areas.size === 0) return []
  const theirs = new Set(readMaps(other).map(({ device, inode }) => `${device}:${inode}`))
  const found = [...areas].flatMap(([object, what]) => (theirs.has(object) ? [what] : []))
  return found.map((what) => ({ what, has: 'this shared memory, too' }))
}
