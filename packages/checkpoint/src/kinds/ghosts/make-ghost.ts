import { randomBytes } from 'node:crypto'
import { closeSync, fstatSync } from 'node:fs'
import { dirname } from 'node:path'
import { PageferryError } from '@pageferry/base'
import { fds } from '@pageferry/kernel'
import type { SkeletonProcess } from '../../remote/skeleton-process.js'

/** Makes a file or directory that has no name, through the skeleton. */

const { O_ACCMODE, O_RDONLY, O_RDWR, O_CREAT, O_EXCL, O_TRUNC } = fds
const { O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW, O_PATH, O_TMPFILE } = fds
/** How a file was found and made says nothing about what is open. */
export const openingFlags = O_CREAT | O_EXCL | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_TMPFILE
const typeMask = 0o170000
const directory = 0o040000
const regular = 0o100000
const privateMode = 0o600
const privateDirectoryMode = 0o700
/** (uid_t)-1: setfsuid(2) and chown(2) take it for "as it is". */
const noId = 0xffff_ffff
const ENOENT = -2n
const ENOTDIR = -20n
/** The file system has no O_TMPFILE: NFS says the first, a kernel that does not know the flag the second. */
const noTmpfile: readonly bigint[] = [-95n, -21n]
/** Where every user may make files that outlast a restart: hier(7). */
const publicPlace = '/var/tmp'

/** A Ghost frame: only its form was checked. */
export interface GhostFacts {
  ghostId: number
  path: string
  mode: number
  uid: number
  gid: number
  size: number
  /** Since 1970, as 64 bits in two's complement. */
  atimeNs: bigint
  mtimeNs: bigint
  tmpfileFlags: number
}

/** Descriptors of this process. */
interface MadeGhost {
  fd: number
  /** Of the description that may still give it a name; undefined: none may. */
  tmpfile: number | undefined
}

export function isDirectory({ mode }: GhostFacts): boolean {
  return (mode & typeMask) === directory
}

/**
 * By the skeleton, with no more rights than the file's owner has: the path is the workload's choice. The file system should
 * be the one that the original was on, so the place is its directory or, when that is gone too, the nearest above. An owner
 * who may not write there (/var/log) gets a file elsewhere.
 */
export function makeGhost(skeleton: SkeletonProcess, facts: GhostFacts): MadeGhost {
  const { pid } = skeleton
  const { uid, gid } = facts
  if (!isDirectory(facts) && (facts.mode & typeMask) !== regular) {
    throw new PageferryError('PROTOCOL', `a file without a name has the mode ${facts.mode.toString(8)}`)
  }
  if (uid === noId || gid === noId) throw new PageferryError('PROTOCOL', 'a file without a name has no owner')
  // Its supplementary groups are taken for good: the workload's own come with its credentials.
  skeleton.all([
    { name: 'setgroups', args: [0, 0] },
    { name: 'setfsgid', args: [gid] },
    { name: 'setfsuid', args: [uid] },
  ])
  try {
    const remote = makeNear(skeleton, facts)
    const fd = fds.pidfdGetfd(skeleton.pidfd, remote)
    skeleton.call('close', remote)
    // Who may write in its place may have put a directory of their own there, between mkdir(2) and open(2).
    if (isDirectory(facts) && fstatSync(fd).nlink !== 0) {
      closeSync(fd)
      throw new PageferryError('REFUSED', `the directory ${facts.path} was exchanged while it was made`)
    }
    if (facts.tmpfileFlags === 0 || isDirectory(facts)) return { fd, tmpfile: undefined }
    return { fd: fds.open(`/proc/self/fd/${fd}`, O_RDWR | O_CLOEXEC), tmpfile: fd }
  } finally {
    skeleton.all(
      [
        { name: 'setfsuid', args: [0] },
        { name: 'setfsgid', args: [0] },
      ],
      pid,
    )
  }
}

/** @returns its descriptor in the skeleton */
function makeNear(skeleton: SkeletonProcess, facts: GhostFacts): number {
  let place = dirname(facts.path)
  let result = makeIn(skeleton, facts, place)
  while ((result === ENOENT || result === ENOTDIR) && place !== '/') {
    place = dirname(place)
    result = makeIn(skeleton, facts, place)
  }
  const elsewhere = result < 0n ? makeIn(skeleton, facts, publicPlace) : result
  if (elsewhere >= 0n) return Number(elsewhere)
  throw new PageferryError(
    'REFUSED',
    `${facts.path} has no name any more, and user ${facts.uid} cannot make such a file in ${place} (errno ${-result}) or ${publicPlace} (errno ${-elsewhere}) of the destination`,
  )
}

/** The descriptor, or a negative errno. */
function makeIn(skeleton: SkeletonProcess, facts: GhostFacts, place: string): bigint {
  if (isDirectory(facts)) return makeAndRemove(skeleton, place, 'directory')
  // O_EXCL: it can never get a name again (open(2)), as the original cannot.
  const own = facts.tmpfileFlags & ~(openingFlags | O_PATH)
  const flags = facts.tmpfileFlags === 0 ? O_RDWR | O_TMPFILE | O_EXCL : own | O_TMPFILE
  if ((flags & O_ACCMODE) === O_RDONLY) throw new PageferryError('PROTOCOL', 'O_TMPFILE that cannot write')
  const path = skeleton.write(Buffer.from(`${place}\0`))
  const [result] = skeleton.batch([{ name: 'open', args: [path, flags | O_CLOEXEC, privateMode] }])
  return noTmpfile.includes(result) ? makeAndRemove(skeleton, place, 'file') : result
}

/**
 * Has a name for a moment, which no other program can mean. The calls run together, so that a worker that is killed leaves
 * none behind, unless it is killed within them.
 */
function makeAndRemove(skeleton: SkeletonProcess, place: string, what: 'file' | 'directory'): bigint {
  const name = `.pageferry-${randomBytes(12).toString('base64url')}`
  const path = skeleton.write(Buffer.from(`${place === '/' ? '' : place}/${name}\0`))
  if (what === 'file') {
    const flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC
    const [fd, removed] = skeleton.batch([
      { name: 'open', args: [path, flags, privateMode] },
      { name: 'unlink', args: [path] },
    ])
    return fd < 0n ? fd : removed < 0n ? removed : fd
  }
  const flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC
  const [made, fd, removed] = skeleton.batch([
    { name: 'mkdir', args: [path, privateDirectoryMode] },
    { name: 'open', args: [path, flags, 0] },
    { name: 'rmdir', args: [path] },
  ])
  return made < 0n ? made : fd < 0n ? fd : removed < 0n ? removed : fd
}
