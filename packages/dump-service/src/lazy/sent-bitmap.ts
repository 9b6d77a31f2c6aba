import { PageferryError, pagesInRuns, type RunTable, runCapacity } from '@pageferry/base'

/** Everything that another thread needs for the same bitmap. Posting it copies the run table and shares the bits. */
export interface SharedPages {
  /** The lazy pages, ascending and disjoint. */
  readonly lazy: RunTable
  readonly words: SharedArrayBuffer
}

const wordPages = 32

/**
 * Marks the lazy pages that need not be sent any more, because they were sent or the workload discarded them: one bit
 * per page, in the order of the run table. The two threads of the source that send pages share it. A thread claims
 * pages before it sends them. Of two claims on one page exactly one succeeds. So no page is both pushed and sent ahead
 * of a fault, whatever the threads do at the same time.
 *
 * A page that a thread of the workload waits for is sent whatever its bit says: its push may be stuck behind a full
 * window. Its bit is set all the same.
 */
export class SentBitmap {
  readonly shared: SharedPages
  readonly #words: Int32Array
  /** For each run of the table, the bit of its first page. */
  readonly #firstBits: Float64Array

  /** @param words of the thread that made the bitmap; default: no page was sent yet */
  constructor(lazy: RunTable, words?: SharedArrayBuffer) {
    const nrWords = Math.ceil(pagesInRuns(lazy) / wordPages)
    this.shared = { lazy, words: words ?? new SharedArrayBuffer(4 * nrWords) }
    this.#words = new Int32Array(this.shared.words)
    this.#firstBits = new Float64Array(runCapacity(lazy))
    let bit = 0
    for (let r = 0; r < this.#firstBits.length; r++) {
      this.#firstBits[r] = bit
      bit += lazy[2 * r + 1]
    }
  }

  static of({ lazy, words }: SharedPages): SentBitmap {
    return new SentBitmap(lazy, words)
  }

  /** Whether every page of first .. first+nr-1 is lazy. */
  covers(first: number, nr: number): boolean {
    const { lazy } = this.shared
    // Runs may touch, where an area ends between two pages.
    for (let page = first, r = this.#runOf(first); page < first + nr; r++) {
      if (r < 0 || 2 * r >= lazy.length || page < lazy[2 * r]) return false
      page = lazy[2 * r] + lazy[2 * r + 1]
    }
    return true
  }

  /** Whether the bit of a page is set. The page must be in the table. */
  has(page: number): boolean {
    let isSet = false
    this.#forEachWord(page, 1, (word, mask) => {
      isSet = (Atomics.load(this.#words, word) & mask) !== 0
    })
    return isSet
  }

  /**
   * Sets the bits of pages of the table and returns those that were not set. The caller, and no other thread, must send
   * them.
   * @param runs ascending
   */
  claim(runs: RunTable, nrRuns = runCapacity(runs)): RunTable {
    const claimed: number[] = []
    for (let r = 0; r < nrRuns; r++) {
      this.#forEachWord(runs[2 * r], runs[2 * r + 1], (word, mask, page) => {
        addRuns(claimed, mask & ~Atomics.or(this.#words, word, mask), page)
      })
    }
    return Float64Array.from(claimed)
  }

  /** Clears the bits of pages that were claimed and got lost in flight: any thread may send them again. */
  clear(runs: RunTable): void {
    for (let r = 0; r < runCapacity(runs); r++) {
      this.#forEachWord(runs[2 * r], runs[2 * r + 1], (word, mask) => {
        Atomics.and(this.#words, word, ~mask)
      })
    }
  }

  /** Calls back for each word with bits of first .. first+nr-1. `page`: the page that bit 0 of the word stands for. */
  #forEachWord(
    first: number,
    nr: number,
    callback: (word: number, mask: number, page: number) => void,
  ): void {
    const { lazy } = this.shared
    let r = this.#runOf(first)
    for (let page = first; page < first + nr; r++) {
      if (r < 0 || 2 * r >= lazy.length || page < lazy[2 * r]) {
        throw new PageferryError('INTERNAL', `page 0x${page.toString(16)} is not lazy`)
      }
      const end = Math.min(first + nr, lazy[2 * r] + lazy[2 * r + 1])
      while (page < end) {
        const bit = this.#firstBits[r] + page - lazy[2 * r]
        const low = bit % wordPages
        const length = Math.min(wordPages - low, end - page)
        const ones = length === wordPages ? -1 : (1 << length) - 1
        callback((bit - low) / wordPages, ones << low, page - low)
        page += length
      }
    }
  }

  /** Index of the run that holds the page; -1 when there is none. */
  #runOf(page: number): number {
    const { lazy } = this.shared
    let low = 0
    let high = this.#firstBits.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (lazy[2 * middle] + lazy[2 * middle + 1] <= page) low = middle + 1
      else high = middle
    }
    return low < this.#firstBits.length && lazy[2 * low] <= page ? low : -1
  }
}

/** Appends the pages of a word's bits to ascending runs. It extends the last run where they continue it. */
function addRuns(runs: number[], bits: number, page: number): void {
  for (let left = bits; left !== 0; ) {
    const low = trailingZeros(left)
    const length = trailingZeros(~(left >>> low))
    const first = page + low
    const last = runs.length - 2
    if (last >= 0 && runs[last] + runs[last + 1] === first) runs[last + 1] += length
    else runs.push(first, length)
    left = low + length === wordPages ? 0 : left & (-1 << (low + length))
  }
}

/** Returns 32 for 0. */
function trailingZeros(word: number): number {
  return word === 0 ? 32 : 31 - Math.clz32(word & -word)
}
