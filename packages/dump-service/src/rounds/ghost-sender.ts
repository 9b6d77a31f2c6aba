import { closeSync, fstatSync, statfsSync } from 'node:fs'
import { setImmediate } from 'node:timers/promises'
import { PageferryError } from '@pageferry/base'
import {
  ghostChunkBytes as chunkBytes,
  type Extent,
  extentsOf,
  type FileTable,
  type Ghost,
  ghostLosses,
  maxGhosts,
  openGhost,
  type Problem,
  roomOf,
} from '@pageferry/checkpoint'
import { type Frame, maxGhostBytes } from '@pageferry/wire'
import type { SourceLanes } from '../lanes/lanes.js'
import { chunksOf, GhostChunk } from './ghost-chunks.js'
import type { Pace } from './pacing.js'

/**
 * File systems that set the times of a file with every write, and before the first write through a new mapping: ext4, XFS,
 * Btrfs. tmpfs does not (mm/shmem.c has no page_mkwrite).
 */
const timekeepers = new Set([0xef53, 0x58465342, 0x9123683e])
/** Two changes within one tick of the kernel's coarse clock leave one time; much more than a tick for good measure. */
const settlingNs = 1_000_000_000n

/** What the destination has of one ghost. */
interface SentGhost {
  readonly id: number
  readonly path: string
  readonly fd: number
  readonly hasTimes: boolean
  /** Hashes of the chunks that were sent and are not holes, by number. */
  readonly chunks: Map<number, string>
  /** Of the last frame about it. */
  facts: string
  /** Its ctime, if that will tell of the next change; null: it may have been written without a trace. */
  settledNs: bigint | null
  size: number
}

export interface SendOptions {
  lanes: Pick<SourceLanes, 'send'>
  /** None in the freeze. */
  pacing?: Pace
  signal: AbortSignal
}

/**
 * Keeps the destination's copies of files that have no name any more. Each pass finds what has changed since the one before
 * and sends that: the first ones while the workload runs, the last one while it stands still. So the last one decides, and
 * the ones before it need not be consistent.
 */
export class GhostSender {
  readonly #files: FileTable
  readonly #limitBytes: number
  readonly #sent = new Map<string, SentGhost>()
  readonly #chunk = new GhostChunk()

  /** @param limitBytes of data in all of them */
  constructor(files: FileTable, limitBytes: number) {
    this.#files = files
    this.#limitBytes = limitBytes
  }

  /** Whether the destination has it. */
  has(identity: string): boolean {
    return this.#sent.has(identity)
  }

  /**
   * @param find finds all that the workload holds now
   * @throws WORKLOAD_CHANGED when they have become more than is allowed
   */
  async send(find: () => readonly Ghost[], options: SendOptions): Promise<void> {
    // What is opened, mapped and first written later than this changes its ctime later, too.
    const foundNs = BigInt(Date.now()) * 1_000_000n
    const ghosts = find()
    if (ghosts.length > maxGhosts) throw tooMany(ghosts.length)
    this.#forget(new Set(ghosts.map(({ identity }) => identity)), options)
    let room = this.#limitBytes
    for (const ghost of ghosts) room -= await this.#sendGhost(ghost, room, foundNs, options)
  }

  #forget(held: ReadonlySet<string>, { lanes }: SendOptions): void {
    for (const [identity, { id, fd }] of this.#sent) {
      if (held.has(identity)) continue
      lanes.send({ type: 'ghostGone', ghostId: id })
      this.#sent.delete(identity)
      this.#files.forgetGhost(identity)
      closeSync(fd)
    }
  }

  /** @returns its data in bytes */
  async #sendGhost(ghost: Ghost, room: number, foundNs: bigint, options: SendOptions): Promise<number> {
    const sent = this.#sent.get(ghost.identity) ?? this.#open(ghost)
    if (sent === null) return 0
    const { lanes } = options
    const { mode, uid, gid, size, atimeNs, mtimeNs, ctimeNs } = fstatSync(sent.fd, { bigint: true })
    if (size > maxGhostBytes)
      throw tooLarge(ghost, `reaches to ${size}, at most ${maxGhostBytes} bytes are moved`)
    sent.size = ghost.isDirectory ? 0 : Number(size)
    const facts = {
      ...{ ghostId: sent.id, path: ghost.path, tmpfileFlags: ghost.tmpfileFlags },
      ...{ mode: Number(mode), uid: Number(uid), gid: Number(gid), size: sent.size },
      ...{ atimeNs: BigInt.asUintN(64, atimeNs), mtimeNs: BigInt.asUintN(64, mtimeNs) },
    }
    const text = Object.values(facts).join()
    if (text !== sent.facts) lanes.send({ type: 'ghost', ...facts })
    sent.facts = text
    if (ghost.isDirectory) return 0
    const extents: Extent[] = []
    let data = 0
    for (const extent of extentsOf(sent.fd, sent.size)) {
      data += roomOf(extent)
      if (data > room) throw tooLarge(ghost, 'holds more than --ghost-limit leaves for it')
      extents.push(extent)
    }
    const isKnown = sent.settledNs === ctimeNs && !ghost.isWritten
    // write(2) sets the time when it begins, and a mapping when it is first written: what they write later shows nowhere. So
    // a file that the workload can write is read each time.
    const isSettled = sent.hasTimes && !ghost.isWritten && foundNs - ctimeNs > settlingNs
    sent.settledNs = isSettled ? ctimeNs : null
    if (!isKnown) await this.#sendChunks(sent, extents, options)
    return data
  }

  #open(ghost: Ghost): SentGhost | null {
    const fd = openGhost(ghost)
    if (fd === null) return null
    const hasTimes = timekeepers.has(statfsSync(`/proc/self/fd/${fd}`).type)
    const id = this.#files.ghostId(ghost.identity)
    const sent = {
      id,
      path: ghost.path,
      fd,
      hasTimes,
      chunks: new Map(),
      facts: '',
      settledNs: null,
      size: 0,
    }
    this.#sent.set(ghost.identity, sent)
    return sent
  }

  async #sendChunks(sent: SentGhost, extents: readonly Extent[], options: SendOptions): Promise<void> {
    const { lanes, pacing, signal } = options
    const seen = new Set<number>()
    for (const [number, parts] of chunksOf(extents)) {
      // Reading takes about a millisecond. Heartbeats and a cancellation come in between.
      await setImmediate()
      signal.throwIfAborted()
      seen.add(number)
      const { pieces, hash } = this.#chunk.read(sent.fd, number, parts)
      if (sent.chunks.get(number) === hash) continue
      if (sent.chunks.has(number)) this.#punch(sent, number, options)
      sent.chunks.set(number, hash)
      for (const piece of pieces) {
        await pacing?.turn(signal)
        const frame = { type: 'ghostData', ghostId: sent.id, ...piece, hole: false } as const
        // One frame at a time: the buffer of the connection grows without bound otherwise.
        await sendWhole(lanes, frame, this.#chunk.bytesOf(piece), signal)
        pacing?.sent(piece.bytes)
      }
    }
    for (const number of sent.chunks.keys()) {
      if (seen.has(number)) continue
      this.#punch(sent, number, options)
      sent.chunks.delete(number)
    }
  }

  /** Takes back what was sent. What lies behind the end went with the size. */
  #punch({ id, size }: SentGhost, number: number, { lanes }: SendOptions): void {
    const offset = number * chunkBytes
    const bytes = Math.min(chunkBytes, size - offset)
    if (bytes > 0) lanes.send({ type: 'ghostData', ghostId: id, offset, bytes, hole: true })
  }

  /** What the files lose in the move. */
  get notMoved(): Problem[] {
    return [...this.#sent.values()].flatMap(({ path, fd }) => ghostLosses(path, fd))
  }

  close(): void {
    for (const { fd } of this.#sent.values()) closeSync(fd)
    this.#sent.clear()
  }
}

/** Resolves when the frame is on its way. A peer that stands still must not keep the workload frozen: see `signal`. */
function sendWhole(
  lanes: SendOptions['lanes'],
  frame: Frame,
  payload: Uint8Array,
  signal: AbortSignal,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const giveUp = (): void => reject(signal.reason)
    signal.addEventListener('abort', giveUp, { once: true })
    lanes.send(frame, payload, () => {
      signal.removeEventListener('abort', giveUp)
      resolve()
    })
  })
}

function tooLarge({ path }: Ghost, what: string): PageferryError {
  return new PageferryError('WORKLOAD_CHANGED', `the deleted file ${path} ${what}`)
}

function tooMany(count: number): PageferryError {
  return new PageferryError('WORKLOAD_CHANGED', `${count} deleted files: at most ${maxGhosts} are moved`)
}
