import { performance } from 'node:perf_hooks'
import { PageferryError } from '@pageferry/base'
import { decodePagemapEntries, type ProcessImages, type Restorer } from '@pageferry/checkpoint'
import { imageFileName } from '@pageferry/images'
import { type PageSet, readPagemapEntries, reconcile } from '@pageferry/memory'
import { collectYoungGarbage } from '@pageferry/service/worker'
import { type FrameOf, WireError } from '@pageferry/wire'
import type { RoundTarget } from './bulk-messages.js'
import { installRanges } from './page-installer.js'

export interface FinalSets {
  parent: PageSet
  lazy: PageSet
  present: PageSet
}

/** Whoever installs the pages: the bulk lanes. */
export interface RoundInstallers {
  open(target: RoundTarget): void
  /** The round is complete: nothing is installed until the next one is opened. */
  close(): void
}

/**
 * Applies rounds to the skeleton: first the round's memory map, then its pages, which the bulk lanes install. A round is
 * complete when each lane has installed as many batches as RoundEnd says; nothing of the next one is applied before.
 */
export class RoundReceiver {
  readonly #restorer: Restorer
  readonly #images: ProcessImages
  readonly #asId: number
  readonly #installers: RoundInstallers
  #round = 0
  #open = false
  #final: FinalSets | null = null
  #batches: number[] = []
  #expected: number[] | null = null
  #pages = 0
  #began = 0
  #complete: () => void = () => {}
  /** What the page tables say since the last round, and the state of the map that this holds for. */
  #present: { pages: PageSet; changes: number } | null = null
  readonly #finalInstalled: Promise<FinalSets>
  #installed: (sets: FinalSets) => void = () => {}

  constructor(restorer: Restorer, images: ProcessImages, asId: number, installers: RoundInstallers) {
    this.#restorer = restorer
    this.#images = images
    this.#asId = asId
    this.#installers = installers
    this.#finalInstalled = new Promise((resolve) => {
      this.#installed = resolve
    })
  }

  get round(): number {
    return this.#round
  }

  /** Resolves when the final round is installed; rejects when the step that waits is told to give up. */
  finalSets(signal: AbortSignal): Promise<FinalSets> {
    return new Promise((resolve, reject) => {
      const giveUp = () => reject(signal.reason)
      if (signal.aborted) giveUp()
      signal.addEventListener('abort', giveUp, { once: true })
      void this.#finalInstalled.then(resolve)
    })
  }

  /** Answers what the final round says of each page; null: this is another one. */
  begin(frame: FrameOf<'roundBegin'>): FinalSets | null {
    this.#checkSpace(frame.asId)
    if (this.#open || this.#final !== null || frame.round !== this.#round + 1) {
      throw new WireError('OUT_OF_ORDER', `round ${frame.round} begins after round ${this.#round}`)
    }
    this.#round = frame.round
    this.#open = true
    this.#batches = []
    this.#expected = null
    this.#pages = 0
    this.#began = performance.now()
    const map = this.#restorer.applyMap(this.#images)
    const present = this.#present?.changes === this.#restorer.map.changes ? this.#present.pages : null
    this.#present = null
    if (frame.final) {
      const image = this.#images.get(imageFileName('pagemap', this.#restorer.nsPid))
      const sets = readPagemapEntries(decodePagemapEntries(image))
      const { discard, missing } = reconcile(present ?? this.#restorer.presentPages(), sets, map)
      if (!missing.isEmpty) {
        throw new PageferryError(
          'INTERNAL',
          `${missing.count} pages that the source calls unchanged are not here, the first is page 0x${missing.firstFrom(0).toString(16)}`,
        )
      }
      this.#restorer.map.discard(discard)
      this.#final = sets
    }
    const { pid, uffd } = this.#restorer
    const ranges = installRanges(this.#restorer.map)
    this.#installers.open({ kind: 'round', asId: this.#asId, round: this.#round, pid, uffd, ranges })
    return this.#final
  }

  /**
   * A lane has installed a batch.
   * @throws WireError OUT_OF_ORDER: the round has fewer
   */
  installed(lane: number, round: number, pages: number): void {
    if (!this.#open || round !== this.#round) {
      throw new WireError('OUT_OF_ORDER', `a batch of round ${round} behind the last one`)
    }
    this.#pages += pages
    this.#batches[lane] = (this.#batches[lane] ?? 0) + 1
    this.#finishIfComplete()
  }

  /** Calls back when the whole round is installed. */
  end(frame: FrameOf<'roundEnd'>, applied: (pages: number, durationMs: number) => void): void {
    this.#checkSpace(frame.asId)
    const known = this.#open && frame.round === this.#round && frame.final === (this.#final !== null)
    if (!known || this.#expected !== null) {
      throw new WireError('OUT_OF_ORDER', `round ${frame.round} ends in round ${this.#round}`)
    }
    this.#expected = frame.batchesPerLane
    this.#complete = () => applied(this.#pages, performance.now() - this.#began)
    this.#finishIfComplete()
  }

  #finishIfComplete(): void {
    const expected = this.#expected
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
    this.#installers.close()
    this.#complete()
    if (this.#final !== null) this.#installed(this.#final)
    else setImmediate(() => this.#lookAhead())
  }

  /**
   * Between two rounds there is time, and in the freeze there is none: the scan takes longer the more memory there is.
   * Nothing is installed before the next round begins, and if that changes the map it is looked again.
   */
  #lookAhead(): void {
    if (this.#open || this.#final !== null) return
    try {
      this.#present = { pages: this.#restorer.presentPages(), changes: this.#restorer.map.changes }
      collectYoungGarbage()
    } catch {
      // The skeleton is gone: whoever needs it next says so.
    }
  }

  #checkSpace(asId: number): void {
    if (asId !== this.#asId) throw new WireError('OUTSIDE_PROCESS', `address space ${asId} is unknown`)
  }
}
