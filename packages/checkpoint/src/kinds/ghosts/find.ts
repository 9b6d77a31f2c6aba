import { type BigIntStats, lstatSync, readlinkSync, statfsSync, statSync } from 'node:fs'
import { fds } from '@pageferry/kernel'
import { openChecked } from '../../open-checked.js'
import { type FdInfo, readFds } from '../../proc/fdinfo.js'
import { type MapsLine, readMaps } from '../../proc/maps.js'

/**
 * Ghosts, as CRIU calls them: files that have lost their last name while a process holds them. What has no name cannot be
 * opened on the destination, so its contents travel.
 */

const { O_ACCMODE, O_RDONLY, O_TMPFILE, O_NOATIME, O_PATH } = fds
const deletedSuffix = ' (deleted)'
const typeMask = 0o170000n
const directory = 0o040000n
const regular = 0o100000n
const ownerMayWrite = 0o200
/** Objects of the kernel's own file systems, which have no name either. */
const nameless = /^\/(?:dev\/zero|memfd:|SYSV|\[aio\]|anon_hugepage|secretmem \(deleted\)$)/

export interface Ghost {
  /** Names it on this host as long as it is held. */
  readonly identity: string
  /** Its last name. */
  readonly path: string
  /** Somewhere in /proc: opening that opens the file. */
  readonly link: string
  readonly isDirectory: boolean
  /** The process can write it, through a descriptor or a mapping. */
  isWritten: boolean
  /** Open flags of the description that has made it by O_TMPFILE, so that it may get a name yet; 0: there is none. */
  tmpfileFlags: number
}

/** How /proc shows that the name through which a file was opened is gone. A file may be called so, too. */
export function isDeleted(path: string): boolean {
  return path.startsWith('/') && path.endsWith(deletedSuffix) && !nameless.test(path)
}

const NFS_SUPER_MAGIC = 0x6969
/** Of the NFS client, for a file that was deleted while it is open (fs/nfs/unlink.c). */
const sillyName = /\/\.nfs[0-9a-f]{24}$/
/** The client removes it when the original ends: the destination would lose it after the commit. */
export const sillyRenamed =
  'it was deleted while it is open on NFS, whose client removes it when the original ends'

export const linkedElsewhere =
  'the name that it was opened by is gone, but it has others (hard links), and the kernel does not show them'

export function isSillyRenamed(path: string): boolean {
  if (!sillyName.test(path)) return false
  try {
    return statfsSync(path).type === NFS_SUPER_MAGIC
  } catch {
    return false
  }
}

export function lastName(path: string): string {
  return path.slice(0, -deletedSuffix.length)
}

/** Which of the files and directories without a name this is; null: it has one, or is of another type. */
export function ghostIdentity({ dev, ino, nlink, mode }: BigIntStats): string | null {
  const type = mode & typeMask
  return nlink === 0n && (type === regular || type === directory) ? `${dev}:${ino}` : null
}

/** The identity behind a link of /proc; null also when the link is gone. */
function identityAt(link: string): string | null {
  const stat = statSync(link, { bigint: true, throwIfNoEntry: false })
  return stat === undefined ? null : ghostIdentity(stat)
}

/** Where a link of /proc leads, and the identity of a file that has no name any more. */
export function namedLink(link: string): { path: string; ghost?: string } {
  const path = readlinkSync(link)
  const ghost = isDeleted(path) ? identityAt(link) : null
  return ghost === null ? { path } : { path: lastName(path), ghost }
}

function mapLink(pid: number, { start, nrPages }: MapsLine): string {
  const hex = (page: number): string => (BigInt(page) << 12n).toString(16)
  return `/proc/${pid}/map_files/${hex(start)}-${hex(start + nrPages)}`
}

/**
 * Whether the mapped file was opened for writing: the link has the modes of the open file. If so, the mapping may be made
 * writable (mprotect(2)). True also when it is gone by now: it may have been written.
 */
function isOpenForWriting(link: string): boolean {
  const mode = lstatSync(link, { throwIfNoEntry: false })?.mode ?? ownerMayWrite
  return (mode & ownerMayWrite) !== 0
}

/** Which ghost an area maps; asks once for each file, however often it is mapped. */
export function ghostsOfMaps(pid: number): (line: MapsLine) => string | null {
  const known = new Map<string, string | null>()
  return (line) => {
    const key = `${line.device}:${line.inode}`
    const found = known.get(key)
    if (found !== undefined) return found
    const identity = identityAt(mapLink(pid, line))
    known.set(key, identity)
    return identity
  }
}

/**
 * All that a process has open, has mapped, runs or works in. It may run; what it lets go meanwhile is left out.
 *
 * @param maps empty: it maps none
 */
export function findGhosts(
  pid: number,
  infos: readonly FdInfo[] = readFds(pid, isDeleted),
  maps: readonly MapsLine[] = readMaps(pid),
): Ghost[] {
  const ghosts = new Map<string, Ghost>()
  const note = (path: string, link: string, identity: string | null): Ghost | undefined => {
    if (identity === null) return undefined
    const isDirectory =
      ((statSync(link, { bigint: true, throwIfNoEntry: false })?.mode ?? 0n) & typeMask) === directory
    const ghost = ghosts.get(identity) ?? {
      ...{ identity, path: lastName(path), link, isDirectory },
      ...{ isWritten: false, tmpfileFlags: 0 },
    }
    ghosts.set(identity, ghost)
    return ghost
  }
  for (const { fd, target, flags } of infos) {
    if (!isDeleted(target) || (flags & O_PATH) !== 0) continue
    const link = `/proc/${pid}/fd/${fd}`
    const ghost = note(target, link, identityAt(link))
    if (ghost === undefined) continue
    if ((flags & O_ACCMODE) !== O_RDONLY) ghost.isWritten = true
    if ((flags & O_TMPFILE) === O_TMPFILE) ghost.tmpfileFlags = flags
  }
  const ghostOf = ghostsOfMaps(pid)
  for (const line of maps) {
    if (!isDeleted(line.name)) continue
    const link = mapLink(pid, line)
    const ghost = note(line.name, link, ghostOf(line))
    if (ghost !== undefined && line.shared && isOpenForWriting(link)) ghost.isWritten = true
  }
  for (const name of ['exe', 'cwd']) {
    const link = `/proc/${pid}/${name}`
    const path = readlinkSync(link)
    if (isDeleted(path)) note(path, link, identityAt(link))
  }
  return [...ghosts.values()]
}

/**
 * Opens a ghost for reading, without changing when it was last read.
 *
 * @returns null when the process has let it go since it was found
 */
export function openGhost({ link, identity, isDirectory }: Ghost): number | null {
  try {
    const flags = O_RDONLY | (isDirectory ? 0 : O_NOATIME)
    return openChecked(link, flags, (stat) => ghostIdentity(stat) === identity)
  } catch (error) {
    if (!['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
    return null
  }
}
