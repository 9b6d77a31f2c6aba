import { closeSync, openSync } from 'node:fs'
import { pageBytes } from '@pageferry/base'
import { InstallGate } from '@pageferry/kernel'
import { bulkWindowBatches, type FrameOf, maxBatchPages, pageBytesOf, WireError } from '@pageferry/wire'
import type { Lane } from '@pageferry/wire/sockets'
import { PageDecoder } from '@pageferry/wire/sockets'
import { PageInstaller } from '../rounds/installer.js'
import { HashLog } from '../verify/hash-log.js'
import { PageHasher } from '../verify/page-hasher.js'
import type { FromBulkThread, LazyTarget, Pushed, RoundTarget, Target } from './bulk-messages.js'

interface Waiting {
  lane: Lane
  frame: FrameOf<'pageBatch'>
  payload: Uint8Array
}

/** The target of the lane's batches at the moment. */
interface Destination {
  readonly target: Target
  /** @param payload the pages, decompressed */
  install(lane: Lane, frame: FrameOf<'pageBatch'>, payload: Uint8Array): void
  close(): void
}

/**
 * Installs the pages of one bulk lane: round by round into the skeleton, then into the running workload. It lives in
 * another thread than the worker and knows neither the workload's state nor the other lanes. The worker knows both and
 * opens one target after another. A batch that overtakes the message that opens its target waits.
 */
export class BulkInstaller {
  readonly #post: (message: FromBulkThread, transfer?: ArrayBuffer[]) => void
  readonly #decoder = new PageDecoder()
  #destination: Destination | null = null
  /** The only round whose batches may wait; null before the first target, when any may. */
  #next: number | null = null
  /** Bounded by the lane's window. */
  #waiting: Waiting[] = []
  /** Batches that were handed to the worker, by sequence, with the connection that expects the acknowledgement. */
  readonly #handedOver = new Map<number, Lane>()
  #waitingBytes = 0

  constructor(post: (message: FromBulkThread, transfer?: ArrayBuffer[]) => void) {
    this.#post = post
  }

  open(target: Target): void {
    this.close()
    this.#destination =
      target.kind === 'round'
        ? new Skeleton(target, this.#post)
        : new Workload(target, this.#post, (sequence, lane) => this.#handedOver.set(sequence, lane))
    this.#next = target.round + 1
    const waiting = this.#waiting
    this.#waiting = []
    this.#waitingBytes = 0
    for (const { lane, frame, payload } of waiting) {
      // Handled as if it came now: a wrong batch closes its lane. The lane may be closed already.
      if (!lane.isOpen) continue
      try {
        this.onBatch(lane, frame, payload)
      } catch (error) {
        lane.close(error)
      }
    }
  }

  /** Installs nothing until the next target is opened. */
  close(): void {
    this.#destination?.close()
    this.#destination = null
  }

  /** The worker has dealt with a batch. A closed connection needs no acknowledgement. */
  taken(sequence: number, bytes: number): void {
    this.#handedOver.get(sequence)?.send({ type: 'batchAck', sequence, bytes })
    this.#handedOver.delete(sequence)
  }

  /** @throws WireError: nothing of the frame was applied */
  onBatch(lane: Lane, frame: FrameOf<'pageBatch'>, payload: Uint8Array): void {
    const destination = this.#destination
    if (destination !== null && frame.round === destination.target.round) {
      if (frame.asId !== destination.target.asId) {
        throw new WireError('OUTSIDE_PROCESS', `address space ${frame.asId} is unknown`)
      }
      destination.install(lane, frame, this.#decoder.pagesOf(frame, payload))
    } else if (this.#next === null || frame.round === this.#next) this.#wait(lane, frame, payload)
    else {
      const now = destination === null ? `after round ${this.#next - 1}` : `in round ${this.#next - 1}`
      throw new WireError('OUT_OF_ORDER', `a batch of round ${frame.round} ${now}`)
    }
  }

  #wait(lane: Lane, frame: FrameOf<'pageBatch'>, payload: Uint8Array): void {
    // Drop batches of a lost connection: the source sends them again.
    this.#waiting = this.#waiting.filter((other) => other.lane === lane)
    this.#waitingBytes = this.#waiting.reduce((sum, other) => sum + pageBytesOf(other.frame), 0)
    const bytes = this.#waitingBytes + pageBytesOf(frame)
    if (this.#waiting.length >= bulkWindowBatches || bytes > lane.terms.windowBytes) {
      throw new WireError('WINDOW_EXCEEDED', `${lane} does not wait for its acknowledgements`)
    }
    this.#waitingBytes = bytes
    // Copy the payload: it lies in the connection's receive buffer.
    this.#waiting.push({ lane, frame, payload: Uint8Array.from(payload) })
  }
}

/** Target of a round. The process is stopped, so pages of earlier rounds are overwritten. */
class Skeleton implements Destination {
  readonly target: RoundTarget
  readonly #post: (message: FromBulkThread) => void
  #installer: PageInstaller | null = null
  /** Our own descriptor: if the worker closed a shared one, its number could become another file's while we write. */
  #memFd: number | null = null
  #hasher: PageHasher | null = null
  #log: HashLog | null = null

  constructor(target: RoundTarget, post: (message: FromBulkThread) => void) {
    this.target = target
    this.#post = post
  }

  /** Opens with the first batch. If the skeleton is gone, the lane fails and not the thread. */
  #open(): PageInstaller {
    const { pid, uffd, ranges, hashLog } = this.target
    this.#memFd = openSync(`/proc/${pid}/mem`, 'r+')
    if (hashLog !== undefined) {
      this.#hasher = new PageHasher(pid, this.#memFd, maxBatchPages)
      this.#log = HashLog.open(hashLog)
    }
    return new PageInstaller(uffd, this.#memFd, ranges)
  }

  install(lane: Lane, { sequence, runs, zeroRuns }: FrameOf<'pageBatch'>, payload: Uint8Array): void {
    this.#installer ??= this.#open()
    this.#installer.installBatch(runs, payload, zeroRuns)
    // Read back at once, while the pages are in the processor's cache. A page that was not written will lack its hash.
    for (const table of [runs, zeroRuns]) {
      this.#hasher?.forEachPiece(table, (piece, hashes) => this.#log?.append('round', piece, hashes))
    }
    lane.send({ type: 'batchAck', sequence, bytes: payload.length })
    this.#post({ type: 'installed', round: this.target.round, pages: payload.length / pageBytes })
  }

  close(): void {
    if (this.#memFd !== null) closeSync(this.#memFd)
    this.#log?.close()
  }
}

/** Target of the lazy phase. The process runs, so only missing pages that the gate lets pass are installed. */
class Workload implements Destination {
  readonly target: LazyTarget
  readonly #post: (message: FromBulkThread, transfer?: ArrayBuffer[]) => void
  readonly #onHandedOver: (sequence: number, lane: Lane) => void
  readonly #gate: InstallGate
  #log: HashLog | null = null

  constructor(
    target: LazyTarget,
    post: (message: FromBulkThread, transfer?: ArrayBuffer[]) => void,
    onHandedOver: (sequence: number, lane: Lane) => void,
  ) {
    this.target = target
    this.#post = post
    this.#onHandedOver = onHandedOver
    this.#gate = new InstallGate(target.gate)
  }

  install(lane: Lane, { sequence, runs, zeroRuns }: FrameOf<'pageBatch'>, payload: Uint8Array): void {
    const { asId, uffd } = this.target
    const isUnlogged = !this.#noteHashes(runs, payload, zeroRuns)
    const pages = this.#gate.install(uffd, runs, payload)
    const zeros = this.#gate.install(uffd, zeroRuns, undefined)
    const batch: Pushed = {
      asId,
      sequence,
      runs,
      zeroRuns,
      installed: pages.installed + zeros.installed,
      lost: [...pages.lost, ...zeros.lost],
      isClosed: pages.isClosed || zeros.isClosed,
      isUnlogged,
    }
    // Asked last: a fork or a move that is read after this finds these pages installed.
    if (this.#gate.hasOthers) {
      batch.payload = Uint8Array.from(payload)
      this.#onHandedOver(sequence, lane)
      this.#post({ type: 'pushed', batch }, [batch.payload.buffer as ArrayBuffer])
    } else {
      lane.send({ type: 'batchAck', sequence, bytes: payload.length })
      this.#post({ type: 'pushed', batch })
    }
  }

  /** Returns false when the hashes should be on record and are not. */
  #noteHashes(runs: Float64Array, payload: Uint8Array, zeroRuns: Float64Array): boolean {
    const { hashLog } = this.target
    if (hashLog === undefined) return true
    this.#log ??= HashLog.open(hashLog)
    return this.#log.appendLazy(runs, payload, zeroRuns)
  }

  close(): void {
    this.#log?.close()
  }
}
