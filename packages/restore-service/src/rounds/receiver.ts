import { performance } from 'node:perf_hooks'
import { PageferryError } from '@pageferry/base'
import { decodePagemapEntries, type ProcessImages, type Restorer } from '@pageferry/checkpoint'
import { imageFileName } from '@pageferry/images'
import { type PageSet, readPagemapEntries, reconcile } from '@pageferry/pages'
import { collectYoungGarbage } from '@pageferry/service/worker'
import { type FrameOf, WireError } from '@pageferry/wire'
import type { RoundTarget } from '../lanes/bulk-messages.js'
import { installRanges } from './installer.js'

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
  /** The authority on the contents: its image comes within the final round, behind those of the state. */
  readonly #pagemapName: string
  #round = 0
  #isFinal = false
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
    this.#pagemapName = imageFileName('pagemap', restorer.nsPid)
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

  /** Brings the memory map to that of the round. */
  begin(frame: FrameOf<'roundBegin'>): void {
    this.#checkSpace(frame.asId)
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
    this.#restorer.applyMap(this.#images)
    if (!frame.final) this.#openInstallers()
  }

  /**
   * An image is complete. That of the final round's pagemap says what becomes of each page: answers it, and discards what
   * the source does not vouch for. null: it was another one.
   */
  imageCame(name: string): FinalSets | null {
    if (name !== this.#pagemapName) return null
    if (!this.#open || !this.#isFinal || this.#final !== null) {
      throw new WireError('OUT_OF_ORDER', `${name} in round ${this.#round}`)
    }
    const { map } = this.#restorer
    const sets = readPagemapEntries(decodePagemapEntries(this.#images.get(name)))
    const there = this.#present?.changes === map.changes ? this.#present.pages : this.#restorer.presentPages()
    const { discard, missing } = reconcile(there, sets, map.map)
    if (!missing.isEmpty) {
      throw new PageferryError(
        'INTERNAL',
        `${missing.count} pages that the source calls unchanged are not here, the first is page 0x${missing.firstFrom(0).toString(16)}`,
      )
    }
    map.discard(discard)
    this.#final = sets
    this.#openInstallers()
    return sets
  }

  #openInstallers(): void {
    this.#present = null
    const { pid, uffd, map } = this.#restorer
    const ranges = installRanges(map)
    this.#installers.open({ kind: 'round', asId: this.#asId, round: this.#round, pid, uffd, ranges })
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
    if (this.#open || this.#isFinal) return
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
