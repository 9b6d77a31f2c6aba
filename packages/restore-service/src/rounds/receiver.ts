import { performance } from 'node:perf_hooks'
import { PageferryError } from '@pageferry/base'
import { decodePagemapEntries, type ProcessImages, type Restorer } from '@pageferry/checkpoint'
import { imageFileName } from '@pageferry/images'
import { type PageSet, readPagemapEntries, reconcile } from '@pageferry/pages'
import { collectYoungGarbage } from '@pageferry/service/worker'
import { type FrameOf, WireError } from '@pageferry/wire'
import type { BulkLanes, RoundBatches } from '../lanes/bulk-lanes.js'
import { installRanges } from './installer.js'

export interface FinalSets {
  parent: PageSet
  lazy: PageSet
  present: PageSet
}

export interface RoundEvents {
  /** A whole round is installed. */
  onRoundApplied(frame: FrameOf<'roundApplied'>): void
  /** The memory map is the final one, and the images of the state have arrived. A throw fails the round. */
  onFinalMap(): void
  /** The final pagemap was applied, and the last pages are being installed. A throw fails the round. */
  onFinalPagemap(sets: FinalSets): void
  onRoundFailed(error: PageferryError): void
}

/** The target of the rounds. */
interface Skeleton {
  restorer: Restorer
  asId: number
  /** File in which the bulk lanes' threads log the hashes of installed pages; undefined: nothing is verified. */
  hashLog?: string
}

/**
 * Applies the rounds of one address space to its skeleton: first the round's memory map, then its pages, which the bulk
 * lanes install. A round is complete when each lane has installed as many batches as RoundEnd says. Nothing of the next
 * round is applied before.
 *
 * Frames of the control lane about rounds come here directly, and so does each installed batch. An error in a frame of
 * the control lane ends the migration with its own reason (`onRoundFailed`). An error in a batch closes the lane that
 * carried it.
 */
export class RoundReceiver implements RoundBatches {
  readonly #skeleton: Skeleton
  readonly #images: ProcessImages
  /** The pagemap is the authority on the contents. Its image comes within the final round, after those of the state. */
  readonly #pagemapName: string
  readonly #bulk: Pick<BulkLanes, 'openRound' | 'close'>
  readonly #events: RoundEvents
  #round = 0
  #isFinal = false
  #open = false
  #final: FinalSets | null = null
  #batches: number[] = []
  #expected: number[] | null = null
  #pages = 0
  #began = 0
  /** Page tables as read since the last round, and the version of the map for which they hold. */
  #present: { pages: PageSet; changes: number } | null = null
  readonly #finalInstalled: Promise<FinalSets>
  #installed: (sets: FinalSets) => void = () => {}

  constructor(
    skeleton: Skeleton,
    images: ProcessImages,
    bulk: Pick<BulkLanes, 'openRound' | 'close'>,
    events: RoundEvents,
  ) {
    this.#skeleton = skeleton
    this.#pagemapName = imageFileName('pagemap', skeleton.restorer.nsPid)
    this.#images = images
    this.#bulk = bulk
    this.#events = events
    this.#finalInstalled = new Promise((resolve) => {
      this.#installed = resolve
    })
  }

  get round(): number {
    return this.#round
  }

  /** Resolves when the final round is installed; rejects when the signal aborts. */
  finalSets(signal: AbortSignal): Promise<FinalSets> {
    return new Promise((resolve, reject) => {
      const giveUp = () => reject(signal.reason)
      if (signal.aborted) giveUp()
      signal.addEventListener('abort', giveUp, { once: true })
      void this.#finalInstalled.then(resolve)
    })
  }

  #apply(action: (skeleton: Skeleton) => void): void {
    try {
      action(this.#skeleton)
    } catch (error) {
      this.#events.onRoundFailed(
        error instanceof PageferryError
          ? error
          : new PageferryError('KERNEL', (error as Error).message, { cause: error }),
      )
    }
  }

  /** Changes the memory map to that of the round. */
  begin(frame: FrameOf<'roundBegin'>): void {
    this.#apply((skeleton) => {
      if (this.#open || this.#isFinal || frame.round !== this.#round + 1) {
        throw new WireError('OUT_OF_ORDER', `round ${frame.round} begins after round ${this.#round}`)
      }
      this.#round = frame.round
      this.#open = true
      this.#isFinal = frame.final
      this.#batches = []
      this.#expected = null
      this.#pages = 0
      this.#began = performance.now()
      skeleton.restorer.applyMap(this.#images)
      if (frame.final) this.#events.onFinalMap()
      else this.#openBulk(skeleton)
    })
  }

  /**
   * An image is complete. The final round's pagemap decides about each page: pages that the source does not vouch for
   * are discarded, and the last pages may come in.
   */
  imageCame(name: string): void {
    this.#apply((skeleton) => {
      if (name !== this.#pagemapName) return
      if (!this.#open || !this.#isFinal || this.#final !== null) {
        throw new WireError('OUT_OF_ORDER', `${name} in round ${this.#round}`)
      }
      const { restorer } = skeleton
      const { map } = restorer
      const sets = readPagemapEntries(decodePagemapEntries(this.#images.get(name)))
      const there = this.#present?.changes === map.changes ? this.#present.pages : restorer.presentPages()
      const { discard, missing } = reconcile(there, sets, map.map)
      if (!missing.isEmpty) {
        throw new PageferryError(
          'INTERNAL',
          `${missing.count} pages that the source calls unchanged are not here, the first is page 0x${missing.firstFrom(0).toString(16)}`,
        )
      }
      map.discard(discard)
      this.#final = sets
      this.#openBulk(skeleton)
      this.#events.onFinalPagemap(sets)
    })
  }

  #openBulk({ restorer, asId, hashLog }: Skeleton): void {
    this.#present = null
    const { pid, uffd, map } = restorer
    const ranges = installRanges(map)
    const target = { kind: 'round', asId, round: this.#round, pid, uffd, ranges, hashLog } as const
    this.#bulk.openRound(target, this)
  }

  /**
   * Counts a batch that a lane has installed.
   * @throws WireError OUT_OF_ORDER: the round has fewer
   */
  onInstalled(lane: number, round: number, pages: number): void {
    if (!this.#open || round !== this.#round) {
      throw new WireError('OUT_OF_ORDER', `a batch of round ${round} behind the last one`)
    }
    this.#pages += pages
    this.#batches[lane] = (this.#batches[lane] ?? 0) + 1
    this.#finishIfComplete()
  }

  end(frame: FrameOf<'roundEnd'>): void {
    this.#apply(() => {
      const known = this.#open && frame.round === this.#round && frame.final === (this.#final !== null)
      if (!known || this.#expected !== null) {
        throw new WireError('OUT_OF_ORDER', `round ${frame.round} ends in round ${this.#round}`)
      }
      this.#expected = frame.batchesPerLane
      this.#finishIfComplete()
    })
  }

  #finishIfComplete(): void {
    const expected = this.#expected
    const skeleton = this.#skeleton
    if (expected === null) return
    for (const [lane, count] of this.#batches.entries()) {
      if ((count ?? 0) > (expected[lane] ?? 0)) {
        throw new WireError(
          'OUT_OF_ORDER',
          `bulk lane ${lane} carried more batches than round ${this.#round} has`,
        )
      }
    }
    if (!expected.every((want, lane) => (this.#batches[lane] ?? 0) === want)) return
    this.#expected = null
    this.#open = false
    this.#bulk.close()
    this.#events.onRoundApplied({
      type: 'roundApplied',
      asId: skeleton.asId,
      round: this.#round,
      pages: this.#pages,
      durationMs: performance.now() - this.#began,
    })
    if (this.#final !== null) this.#installed(this.#final)
    else setImmediate(() => this.#lookAhead(skeleton))
  }

  /**
   * Reads the page tables between two rounds, where there is time: the scan takes longer the more memory there is, and
   * the freeze has none to spare. Nothing is installed before the next round begins. If that changes the map, they are
   * read again.
   */
  #lookAhead({ restorer }: Skeleton): void {
    if (this.#open || this.#isFinal) return
    try {
      this.#present = { pages: restorer.presentPages(), changes: restorer.map.changes }
      collectYoungGarbage()
    } catch {
      // The skeleton is gone. The next step that needs it will report that.
    }
  }
}
