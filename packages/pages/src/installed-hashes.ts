import { PageHashes } from './page-hashes.js'
import { PageSet } from './page-set.js'

/**
 * What the destination installed, page by page, as hashes: what it compares with the original in the end. Page numbers
 * are the source's. Everything is entered in the order in which it happened.
 *
 * Rounds overwrite, so the last hash of a page counts, and only of pages that the final pagemap keeps (PARENT and
 * PRESENT). A lazy page may come twice, by push and by a fault. Either copy may be the installed one, so they must agree.
 */
export class InstalledHashes {
  readonly #hashes = new PageHashes()
  readonly #ofRounds = new PageSet()
  readonly #lazy = new PageSet()
  readonly #kept = new PageSet()
  readonly #contradictory = new PageSet()

  /** Read back from the stopped skeleton. `hashes` has one entry per page of the run table. */
  noteRound(runs: Float64Array, hashes: BigUint64Array): void {
    let at = 0
    for (let r = 0; r < runs.length; r += 2) {
      for (let page = runs[r]; page < runs[r] + runs[r + 1]; page++) this.#hashes.set(page, hashes[at++])
    }
    this.#ofRounds.addRuns(runs)
  }

  /** Of what was installed in the running workload, before it was. */
  noteLazy(runs: Float64Array, hashes: BigUint64Array): void {
    let at = 0
    for (let r = 0; r < runs.length; r += 2) {
      for (let page = runs[r]; page < runs[r] + runs[r + 1]; page++, at++) {
        const before = this.#lazy.has(page) ? this.#hashes.get(page) : hashes[at]
        if (before !== hashes[at]) this.#contradictory.addRange(page, 1)
        this.#hashes.set(page, hashes[at])
      }
      this.#lazy.addRange(runs[r], runs[r + 1])
    }
  }

  /** Pages of rounds that the workload resumed with. */
  noteKept(runs: Float64Array): void {
    this.#kept.addRuns(runs)
  }

  /** Pages that can be compared. */
  get comparable(): PageSet {
    return this.#kept.clone().intersect(this.#ofRounds).union(this.#lazy).subtract(this.#contradictory)
  }

  /** Lazy pages that came twice, with different contents. */
  get contradictory(): PageSet {
    return this.#contradictory
  }

  /** Pages that the workload resumed with, though no hash of them was taken. */
  get unhashed(): PageSet {
    return this.#kept.clone().subtract(this.#ofRounds)
  }

  /** Of comparable pages, in the order of the table. */
  hashesOf(runs: Float64Array, nrPages: number): BigUint64Array {
    const hashes = new BigUint64Array(nrPages)
    let at = 0
    for (let r = 0; r < runs.length; r += 2) {
      for (let page = runs[r]; page < runs[r] + runs[r + 1]; page++)
        hashes[at++] = this.#hashes.get(page) ?? 0n
    }
    return hashes
  }
}
