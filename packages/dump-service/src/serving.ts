import { setTimeout as sleep } from 'node:timers/promises'
import { type Logger, pageBytes } from '@pageferry/base'
import { type PageSet, PushOrder, type WriteHistory } from '@pageferry/memory'
import type { Lane } from '@pageferry/service/worker'
import {
  encodeFrameInto,
  type Frame,
  type FrameOf,
  faultPendingMax,
  frameBufferBytes,
  headerReserveBytes,
  maxBatchPages,
  maxRunsPerBatch,
  WireError,
} from '@pageferry/wire'
import { type BatchPages, BulkLane } from './bulk-lane.js'
import type { Pace } from './pacing.js'
import { PageReader } from './page-reader.js'

export interface ServingOptions {
  pid: number
  memFd: number
  asId: number
  /** The round number of everything that is sent now. */
  round: number
  /** PE_LAZY pages of the final pagemap: nothing else may be asked for. */
  lazy: PageSet
  history?: WriteHistory
  lanes: readonly BulkLane[]
  /** Nothing is pushed for so long, only what is asked for is sent. Default 0. */
  pushDelayMs?: number
  /** Of what is pushed; what is asked for never waits. */
  pacing?: Pace
  log: Logger
}

/**
 * Post-copy on the source: answers page requests of the fault lane at once, and pushes everything else over
 * the bulk lanes in the order of PushOrder. The original is frozen, so pages can be read at any time and
 * any number of times.
 */
export class Serving {
  readonly #options: ServingOptions
  readonly #order: PushOrder
  readonly #reader: PageReader
  readonly #faultBuffer = Buffer.allocUnsafeSlow(frameBufferBytes)
  #more: () => void = () => {}
  pushedPages = 0
  /** Replies that the kernel has not taken yet. */
  #replying = 0

  constructor(options: ServingOptions) {
    this.#options = options
    this.#order = new PushOrder(options.lazy.clone(), options.history)
    this.#reader = new PageReader(options.pid, options.memFd, null)
  }

  /** What was on its way when a bulk lane broke goes back to the queue. */
  requeue(batches: BatchPages[]): void {
    for (const { runs, zeroRuns } of batches) {
      this.#order.requeue(runs)
      this.#order.requeue(zeroRuns)
    }
    this.#more()
  }

  onFrame(lane: Lane, frame: FrameOf<'pageRequest'> | FrameOf<'discard'>): void {
    this.#checkIdentity(frame)
    if (frame.type === 'discard') {
      for (let r = 0; r < frame.runs.length; r += 2) this.#mustBeKnown(frame.runs[r], frame.runs[r + 1])
      this.#order.remove(frame.runs)
      return
    }
    this.#mustBeKnown(frame.page, frame.nrPages)
    this.#reply(lane, frame)
  }

  #checkIdentity(frame: { asId: number; round: number }): void {
    if (frame.asId !== this.#options.asId || frame.round !== this.#options.round) {
      throw new WireError(
        'OUT_OF_ORDER',
        `address space ${frame.asId}, round ${frame.round} is not being served`,
      )
    }
  }

  #mustBeKnown(page: number, nrPages: number): void {
    if (this.#options.lazy.countRange(page, nrPages) !== nrPages) {
      throw new WireError('OUTSIDE_PROCESS', `page 0x${page.toString(16)} is not a lazy page of the process`)
    }
  }

  #reply(lane: Lane, request: FrameOf<'pageRequest'>): void {
    const { asId, round, requestId, page, nrPages, ahead } = request
    if (this.#replying >= faultPendingMax) {
      throw new WireError(
        'WINDOW_EXCEEDED',
        `more than ${faultPendingMax} page requests without taking the replies`,
      )
    }
    const buffer = this.#faultBuffer
    // A page that somebody waits for is sent again even if it was pushed: it may stand behind a full window.
    const wanted = ahead ? this.#order.pendingIn(page, nrPages) : Float64Array.of(page, nrPages)
    const read = this.#reader.read(wanted, wanted.length >> 1, buffer.subarray(headerReserveBytes), false)
    const frame: Frame = {
      type: 'pageReply',
      asId,
      round,
      requestId,
      page,
      nrPages,
      runs: read.runs,
      zeroRuns: read.zeroRuns,
    }
    // Copied: ws may still be sending the reply before, and 4 KiB cost nothing.
    this.#replying++
    lane.sendBytes(Buffer.from(encodeFrameInto(frame, buffer, read.nrPages * pageBytes)), () => {
      this.#replying--
    })
    this.#order.remove(wanted)
    this.#order.noteFault(page + nrPages)
  }

  /** Pushes until told to stop; the destination says when it has everything. */
  async run(signal: AbortSignal): Promise<void> {
    signal.addEventListener('abort', () => this.#more(), { once: true })
    const { pushDelayMs = 0 } = this.#options
    if (pushDelayMs > 0) await sleep(pushDelayMs, undefined, { signal }).catch(() => {})
    const table = new Float64Array(2 * maxRunsPerBatch)
    while (!signal.aborted) {
      await this.#options.pacing?.turn(signal)
      const lane = this.#options.lanes.find((each) => each.hasRoom)
      if (this.#order.isEmpty) await this.#moreToPush()
      else if (lane === undefined) await BulkLane.changed(this.#options.lanes, signal)
      else {
        const { nrRuns, nrPages } = this.#order.next(table, maxBatchPages)
        if (nrPages > 0) this.#push(lane, sorted(table, nrRuns))
        // One batch a turn: requests that came in meanwhile are answered first.
        await new Promise((resolve) => setImmediate(resolve))
      }
    }
  }

  #push(lane: BulkLane, runs: Float64Array): void {
    const { asId, round } = this.#options
    const buffer = lane.takeBuffer()
    const read = this.#reader.read(runs, runs.length >> 1, buffer.pages, false)
    const batch = { asId, round, runs: read.runs, zeroRuns: read.zeroRuns }
    const bytes = lane.send(batch, buffer, read.nrPages * pageBytes)
    this.#options.pacing?.sent(bytes)
    this.pushedPages += read.nrPages + read.nrZeroPages
  }

  #moreToPush(): Promise<void> {
    return new Promise((resolve) => {
      this.#more = resolve
    })
  }
}

/** Frames carry runs in ascending order; neighbours become one. */
function sorted(table: Float64Array, nrRuns: number): Float64Array {
  const pairs = Array.from({ length: nrRuns }, (_, i) => [table[2 * i], table[2 * i + 1]])
  pairs.sort((a, b) => a[0] - b[0])
  return Float64Array.from(pairs.flat())
}
