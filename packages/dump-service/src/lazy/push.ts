import { setTimeout as sleep } from 'node:timers/promises'
import { type Logger, pageBytes } from '@pageferry/base'
import { type PageSet, PushOrder, type WriteHistory } from '@pageferry/pages'
import { maxBatchPages, maxRunsPerBatch } from '@pageferry/wire'
import { type BatchPages, BulkLane } from '../lanes/bulk-lane.js'
import type { Pace } from '../rounds/pacing.js'
import { PageReader } from '../rounds/page-reader.js'

export interface PushOptions {
  pid: number
  memFd: number
  asId: number
  /** The round number of everything that is sent now. */
  round: number
  /** PE_LAZY pages of the final pagemap. */
  lazy: PageSet
  history?: WriteHistory
  lanes: readonly BulkLane[]
  /**
   * Nothing is pushed before the workload runs at the destination: that would take processor and link from a destination
   * that is about to resume it. But not for longer than `atMostMs`. Default: it runs already.
   */
  hold?: { until: Promise<void>; atMostMs: number }
  /** Nothing is pushed for so long, only what is asked for is sent. Default 0. */
  pushDelayMs?: number
  /** Of what is pushed; what is asked for never waits. */
  pacing?: Pace
  /** A batch is on its way, or did not arrive. */
  onSent?(batch: BatchPages, lost: boolean): void
  log: Logger
}

/**
 * Post-copy on the source, but for the faults: pushes what nobody has asked for over the bulk lanes, in the order of
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
    this.#order = new PushOrder(options.lazy.clone(), options.history)
    this.#reader = new PageReader(options.pid, options.memFd, null)
  }

  /** What was on its way when a bulk lane broke goes back to the queue. */
  requeue(batches: BatchPages[]): void {
    for (const batch of batches) {
      this.#order.requeue(batch.runs)
      this.#order.requeue(batch.zeroRuns)
      this.#options.onSent?.(batch, true)
    }
    this.#more()
  }

  /** A fault was answered with these. */
  served(page: number, nrPages: number): void {
    this.#order.remove(Float64Array.of(page, nrPages))
    this.#order.noteFault(page)
  }

  /** The workload has given them back. */
  discarded(runs: Float64Array): void {
    this.#order.remove(runs)
  }

  /** Pushes until told to stop; the destination says when it has everything. */
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
      const { lanes, pacing } = this.#options
      if (await pacing?.turn(signal)) for (const each of lanes) each.noteHeldBack()
      const lane = lanes.find((each) => each.hasRoomToPush)
      if (this.#order.isEmpty) await this.#moreToPush(signal)
      else if (lane === undefined) await BulkLane.changed(lanes, signal)
      else {
        const { nrRuns, nrPages } = this.#order.next(
          table,
          Math.min(lane.pushPages, pacing?.batchPages ?? maxBatchPages),
        )
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
    this.#options.onSent?.(read, false)
    this.pushedPages += read.nrPages + read.nrZeroPages
  }

  /** Also when the signal has fired while something else was waited for. */
  #moreToPush(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      this.#more = resolve
      if (signal.aborted) resolve()
    })
  }
}

/** Frames carry runs in ascending order; neighbours become one. */
function sorted(table: Float64Array, nrRuns: number): Float64Array {
  const pairs = Array.from({ length: nrRuns }, (_, i) => [table[2 * i], table[2 * i + 1]])
  pairs.sort((a, b) => a[0] - b[0])
  const runs: number[] = []
  for (const [first, nr] of pairs) {
    const last = runs.length - 2
    if (last >= 0 && runs[last] + runs[last + 1] === first) runs[last + 1] += nr
    else runs.push(first, nr)
  }
  return Float64Array.from(runs)
}
