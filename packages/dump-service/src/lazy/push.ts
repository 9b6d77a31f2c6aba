import { setTimeout as sleep } from 'node:timers/promises'
import { type Logger, pageBytes, sortRuns } from '@pageferry/base'
import { PageSet, PushOrder, type WriteHistory } from '@pageferry/pages'
import { maxBatchPages, maxRunsPerBatch } from '@pageferry/wire'
import { type BatchPages, BulkLane } from '../lanes/bulk-lane.js'
import type { Pace } from '../rounds/pacing.js'
import { PageReader } from '../rounds/page-reader.js'
import type { FaultFeed } from './fault-feed.js'
import type { SentBitmap } from './sent-bitmap.js'

export interface PushOptions {
  pid: number
  memFd: number
  asId: number
  /** The round number of all frames from now on. */
  round: number
  /** Bitmap of the PE_LAZY pages of the final pagemap. */
  sent: SentBitmap
  /** Where the destination faults. */
  faults: Pick<FaultFeed, 'takeFaults'>
  history?: WriteHistory
  lanes: readonly BulkLane[]
  /**
   * Holds the push back until the workload runs at the destination, but at most for `atMostMs`. Pushing earlier would
   * take processor and link from a destination that is about to resume it. Default: it runs already.
   */
  hold?: { until: Promise<void>; atMostMs: number }
  /** Holds the push back for this long; requested pages are sent at once. Default 0. */
  pushDelayMs?: number
  /** Limits the push only: requested pages never wait. */
  pacing?: Pace
  log: Logger
}

/**
 * Post-copy on the source, except for the faults: pushes the other pages over the bulk lanes, in the order of
 * PushOrder. The original is frozen, so pages can be read at any time and any number of times.
 */
export class Push {
  readonly #options: PushOptions
  readonly #order: PushOrder
  readonly #reader: PageReader
  #more: () => void = () => {}
  pushedPages = 0

  constructor(options: PushOptions) {
    this.#options = options
    this.#order = new PushOrder(PageSet.fromRuns(options.sent.shared.lazy), options.history)
    this.#reader = new PageReader(options.pid, options.memFd, null)
  }

  /** A bulk lane was lost: its batches in flight go back to the queue. */
  requeue(batches: BatchPages[]): void {
    for (const { runs, zeroRuns } of batches) {
      for (const table of [runs, zeroRuns]) {
        this.#options.sent.clear(table)
        this.#order.requeue(table)
      }
    }
    this.#more()
  }

  /** Pushes until the signal fires. The destination says when it has everything. */
  async run(signal: AbortSignal): Promise<void> {
    signal.addEventListener('abort', () => this.#more(), { once: true })
    const { hold, pushDelayMs = 0 } = this.#options
    const waits = { signal, ref: false } as const
    if (hold !== undefined) {
      await Promise.race([hold.until, sleep(hold.atMostMs, undefined, waits)]).catch(() => {})
    }
    if (pushDelayMs > 0) await sleep(pushDelayMs, undefined, { signal }).catch(() => {})
    const table = new Float64Array(2 * maxRunsPerBatch)
    while (!signal.aborted) {
      const { lanes, pacing, faults, sent } = this.#options
      if (await pacing?.turn(signal)) for (const each of lanes) each.noteHeldBack()
      const lane = lanes.find((each) => each.hasRoomToPush)
      if (this.#order.isEmpty) await this.#moreToPush(signal)
      else if (lane === undefined) await BulkLane.changed(lanes, signal)
      else {
        faults.takeFaults((page) => this.#order.noteFault(page))
        const atMost = Math.min(lane.pushPages, pacing?.batchPages ?? maxBatchPages)
        const { nrRuns } = this.#order.next(table, atMost)
        // Leave out pages that the fault lane has sent or the workload has discarded: the order does not know of them.
        const runs = sent.claim(sortRuns(table, nrRuns))
        if (runs.length > 0) this.#push(lane, runs)
        // One batch per turn: requests that came in meanwhile are answered first.
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

  /** Also resolves when the signal has fired already, during another wait. */
  #moreToPush(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      this.#more = resolve
      if (signal.aborted) resolve()
    })
  }
}
