import { closeSync, fchmodSync, fchownSync, ftruncateSync, writeSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import type { CredsEntry } from '@pageferry/images'
import { fds } from '@pageferry/kernel'
import type { Problem } from '../../problems.js'
import type { SkeletonProcess } from '../../remote/skeleton-process.js'
import { ghostChunkBytes, roomOf } from './extents.js'
import { type GhostFacts, isDirectory, makeGhost, openingFlags } from './make-ghost.js'
import { foreignSetIdBits } from './set-id.js'

/** Ghosts on the destination: made before anything maps or opens them, filled, and at last given their attributes. */

const { O_DIRECTORY, O_PATH, O_TMPFILE, O_CLOEXEC } = fds
const permissionMask = 0o7777
const setIdLost = 'it comes without its set-id bits, which are for a user or group that the process is not'

/** At a time: each is one or two descriptors in both workers. */
export const maxGhosts = 1024

interface GhostFile {
  facts: GhostFacts
  /** Ours; in the end one that cannot write (O_PATH), or no program could be run from it. */
  fd: number
  /** Of the description that may still give it a name; undefined: none may. */
  tmpfile: number | undefined
  /** Room that its data takes, in bytes, by the number of the chunk. */
  room: Map<number, number>
}

export class GhostFiles {
  readonly #skeleton: SkeletonProcess
  readonly #limitBytes: number
  readonly #files = new Map<number, GhostFile>()
  #room = 0
  #isFinished = false

  /** @param limitBytes of data in all of them; as `roomOf` counts it */
  constructor(skeleton: SkeletonProcess, limitBytes: number) {
    this.#skeleton = skeleton
    this.#limitBytes = limitBytes
  }

  /**
   * Makes it, or takes note of what has changed.
   * @throws REFUSED where this host does not let its owner have such a file
   */
  note(facts: GhostFacts): void {
    this.#mustBeOpen()
    const known = this.#files.get(facts.ghostId)
    if (known === undefined) {
      if (this.#files.size >= maxGhosts) throw new PageferryError('PROTOCOL', 'too many files without a name')
      const { fd, tmpfile } = makeGhost(this.#skeleton, facts)
      this.#files.set(facts.ghostId, { facts, fd, tmpfile, room: new Map() })
    } else {
      if (isDirectory(known.facts) !== isDirectory(facts))
        throw new PageferryError('PROTOCOL', 'a file became a directory')
      known.facts = facts
    }
    this.#resize(this.#get(facts.ghostId))
  }

  #resize({ facts, fd, room }: GhostFile): void {
    if (isDirectory(facts)) return
    explained(facts, () => ftruncateSync(fd, facts.size))
    for (const [chunk, bytes] of room) {
      if (chunk * ghostChunkBytes < facts.size) continue
      room.delete(chunk)
      this.#room -= bytes
    }
  }

  /**
   * Fills a part, which must lie in one chunk.
   *
   * @param data null: a hole
   * @throws REFUSED beyond the limit, and when the disk is full
   */
  write(ghostId: number, offset: number, bytes: number, data: Uint8Array | null): void {
    this.#mustBeOpen()
    const file = this.#get(ghostId)
    const { facts, fd } = file
    if (isDirectory(facts) || offset + bytes > facts.size) {
      throw new PageferryError('PROTOCOL', `data behind the end of the file without a name ${ghostId}`)
    }
    this.#account(file, offset, bytes, data === null)
    // One file may grow before another one shrinks.
    if (this.#room > 2 * this.#limitBytes) throw tooMuch(this.#limitBytes)
    explained(facts, () => {
      if (data === null) punch(fd, offset, bytes)
      else writeAll(fd, data, offset)
    })
  }

  /** The source sends a chunk anew behind a hole over all of it. */
  #account({ facts, room }: GhostFile, offset: number, bytes: number, isHole: boolean): void {
    const chunk = Math.floor(offset / ghostChunkBytes)
    const begin = chunk * ghostChunkBytes
    const end = Math.min(begin + ghostChunkBytes, facts.size)
    if (offset + bytes > end) throw new PageferryError('PROTOCOL', 'a piece of a file lies in two chunks')
    const before = room.get(chunk) ?? 0
    let after = before
    if (!isHole) after = Math.min(ghostChunkBytes, before + roomOf({ offset, bytes }))
    else if (offset === begin && offset + bytes === end) after = 0
    room.set(chunk, after)
    this.#room += after - before
  }

  drop(ghostId: number): void {
    const { fd, tmpfile, room } = this.#get(ghostId)
    this.#files.delete(ghostId)
    for (const bytes of room.values()) this.#room -= bytes
    closeSync(fd)
    if (tmpfile !== undefined) closeSync(tmpfile)
  }

  /**
   * Everything has come: sizes, owners, rights and times are those of the originals from here on.
   *
   * @param creds of the workload
   * @param tell is called for what a file loses
   * @throws REFUSED beyond the limit
   */
  finish(creds: CredsEntry | undefined, tell: (lost: Problem) => void): void {
    this.#isFinished = true
    if (this.#room > this.#limitBytes) throw tooMuch(this.#limitBytes)
    for (const file of this.#files.values()) {
      const { facts, fd } = file
      const { uid, gid, mode, atimeNs, mtimeNs } = facts
      fchownSync(fd, uid, gid)
      // Behind the owner, whose change takes the set-user-id bit away.
      const lost = isDirectory(facts) ? 0 : foreignSetIdBits(facts, creds)
      fchmodSync(fd, mode & permissionMask & ~lost)
      if (lost !== 0) tell({ what: `the deleted file ${facts.path}`, reason: setIdLost })
      fds.setTimes(fd, BigInt.asIntN(64, atimeNs), BigInt.asIntN(64, mtimeNs))
      file.fd = fds.open(`/proc/self/fd/${fd}`, O_PATH)
      closeSync(fd)
    }
  }

  /** A descriptor of ours with a new description. */
  open(ghostId: number, flags: number): number {
    const { facts, fd, tmpfile } = this.#get(ghostId)
    if ((flags & O_TMPFILE) === O_TMPFILE && tmpfile !== undefined) return fds.dup(tmpfile)
    const directoryFlag = isDirectory(facts) ? O_DIRECTORY : 0
    return fds.open(`/proc/self/fd/${fd}`, (flags & ~openingFlags) | directoryFlag | O_CLOEXEC)
  }

  close(): void {
    for (const id of [...this.#files.keys()]) this.drop(id)
  }

  #get(ghostId: number): GhostFile {
    const file = this.#files.get(ghostId)
    if (file === undefined)
      throw new PageferryError('PROTOCOL', `the file without a name ${ghostId} is unknown`)
    return file
  }

  #mustBeOpen(): void {
    if (this.#isFinished)
      throw new PageferryError('PROTOCOL', 'a file without a name changes behind its last state')
  }
}

function tooMuch(limitBytes: number): PageferryError {
  const limit = `${limitBytes} bytes, the destination's --ghost-limit`
  return new PageferryError('REFUSED', `the files without a name hold more than ${limit}`)
}

/** A full disk, or a file that is too large for it, is a reason not to come. */
function explained(facts: GhostFacts, act: () => void): void {
  try {
    act()
  } catch (error) {
    const reason = (error as Error).message
    throw new PageferryError(
      'REFUSED',
      `${facts.path}, which has no name any more, cannot be kept here: ${reason}`,
      {
        cause: error,
      },
    )
  }
}

function writeAll(fd: number, data: Uint8Array, offset: number): void {
  for (let at = 0; at < data.length; ) at += writeSync(fd, data, at, data.length - at, offset + at)
}

function punch(fd: number, offset: number, bytes: number): void {
  try {
    fds.punchHole(fd, offset, bytes)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EOPNOTSUPP') throw error
    writeAll(fd, new Uint8Array(bytes), offset)
  }
}
