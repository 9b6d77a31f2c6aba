import { chunkPages, PageSet } from './page-set.js'

/**
 * In how many pre-dump rounds each page was written, and in which one last. A page that was written in every round so
 * far will most likely be touched in the first milliseconds after the switchover. So it travels in the freeze or is
 * pushed first.
 *
 * Round 1 sends everything and says nothing about writing: record from round 2 on. Two bytes per page, in chunks that
 * exist only where something was recorded.
 */
const saturated = 255

interface HistoryChunk {
  counts: Uint8Array
  lastRounds: Uint8Array
}

export class WriteHistory {
  readonly #chunks = new Map<number, HistoryChunk>()
  readonly #recorded = new PageSet()

  /** The pages were written since the previous round began. Rounds and counts saturate at 255. */
  record(pages: PageSet, round: number): void {
    const lastRound = Math.min(round, saturated)
    pages.forEachRun((first, nr) => {
      for (let page = first; page < first + nr; ) {
        const key = Math.floor(page / chunkPages)
        const base = key * chunkPages
        const to = Math.min(chunkPages, first + nr - base)
        const { counts, lastRounds } = this.#chunk(key)
        for (let i = page - base; i < to; i++) if (counts[i] < saturated) counts[i]++
        lastRounds.fill(lastRound, page - base, to)
        page = base + to
      }
    })
    this.#recorded.union(pages)
  }

  /** Rounds in which the page was written. */
  count(page: number): number {
    const key = Math.floor(page / chunkPages)
    return this.#chunks.get(key)?.counts[page - key * chunkPages] ?? 0
  }

  /** The last round in which it was written; 0: none. */
  lastRound(page: number): number {
    const key = Math.floor(page / chunkPages)
    return this.#chunks.get(key)?.lastRounds[page - key * chunkPages] ?? 0
  }

  /** The memory is gone: new memory at this address has no history. */
  forget(first: number, nr: number): void {
    this.#recorded.forEachRunIn(first, nr, (start, length) => {
      for (let page = start; page < start + length; page++) {
        const key = Math.floor(page / chunkPages)
        const chunk = this.#chunk(key)
        chunk.counts[page - key * chunkPages] = 0
        chunk.lastRounds[page - key * chunkPages] = 0
      }
    })
    this.#recorded.removeRange(first, nr)
  }

  /**
   * The candidates that were ever recorded, in groups from the hottest down: written in more rounds first, among equals
   * the more recently written. There are at most (rounds x rounds) groups, so a few dozen.
   */
  byHeat(candidates: PageSet): PageSet[] {
    const groups = new Map<number, PageSet>()
    candidates
      .clone()
      .intersect(this.#recorded)
      .forEachRun((first, nr) => {
        let group: PageSet | undefined
        let groupHeat = -1
        let start = first
        for (let page = first; page < first + nr; page++) {
          const heat = this.#heat(page)
          if (heat === groupHeat) continue
          group?.addRange(start, page - start)
          start = page
          groupHeat = heat
          group = groups.get(heat)
          if (group === undefined) {
            group = new PageSet()
            groups.set(heat, group)
          }
        }
        group?.addRange(start, first + nr - start)
      })
    return [...groups].sort(([a], [b]) => b - a).map(([, pages]) => pages)
  }

  /**
   * The hottest recorded candidates, at most `maxPages`; among the coolest chosen, the lowest pages. It runs inside the
   * freeze: one pass counts pages per heat, a second one takes those above the threshold.
   */
  hottest(candidates: PageSet, maxPages: number): PageSet {
    const recorded = candidates.clone().intersect(this.#recorded)
    if (recorded.count <= maxPages) return recorded
    const chosen = new PageSet()
    if (maxPages <= 0) return chosen

    const pagesOfHeat = new Uint32Array((saturated + 1) ** 2)
    recorded.forEachRun((first, nr) => {
      for (let page = first; page < first + nr; page++) pagesOfHeat[this.#heat(page)]++
    })
    let threshold = pagesOfHeat.length - 1
    let room = maxPages
    for (; pagesOfHeat[threshold] <= room; threshold--) room -= pagesOfHeat[threshold]
    recorded.forEachRun((first, nr) => {
      for (let page = first; page < first + nr; page++) {
        const heat = this.#heat(page)
        if (heat > threshold || (heat === threshold && room-- > 0)) chosen.addRange(page, 1)
      }
    })
    return chosen
  }

  #heat(page: number): number {
    const key = Math.floor(page / chunkPages)
    const chunk = this.#chunks.get(key) as HistoryChunk
    const i = page - key * chunkPages
    return chunk.counts[i] * (saturated + 1) + chunk.lastRounds[i]
  }

  #chunk(key: number): HistoryChunk {
    let chunk = this.#chunks.get(key)
    if (chunk === undefined) {
      chunk = { counts: new Uint8Array(chunkPages), lastRounds: new Uint8Array(chunkPages) }
      this.#chunks.set(key, chunk)
    }
    return chunk
  }
}
