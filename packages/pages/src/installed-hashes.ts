import { PageHashes } from './page-hashes.js'
import { PageSet } from './page-set.js'

/**
 * Hashes of every page that the destination installed, for the final comparison with the original. Page numbers are the
 * source's. Call the methods in the order of the events.
 *
 * Rounds overwrite, so the last hash of a page counts, and only for pages that the final pagemap keeps (PARENT and
 * PRESENT). A lazy page may come twice, by push and by a fault. Either copy may be the installed one, so they must
 * agree.
 */
export class InstalledHashes {
  readonly #hashes = new PageHashes()
  readonly #ofRounds = new PageSet()
  readonly #lazy = new PageSet()
  readonly #kept = new PageSet()
  readonly #contradictory = new PageSet()

  /** Pages read back from the stopped skeleton. `hashes` has one entry per page of the run table. */
  noteRound(runs: Float64Array, hashes: BigUint64Array): void {
    let at = 0
    for (let r = 0; r < runs.length; r += 2) {
      for (let page = runs[r]; page < runs[r] + runs[r + 1]; page++) this.#hashes.set(page, hashes[at++])
    }
    this.#ofRounds.addRuns(runs)
  }

  /** Pages installed in the running workload, hashed before the installation. */
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

  /** Pages of rounds that were present when the workload resumed. */
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

  /** Pages that were present when the workload resumed, although no hash of them was taken. */
  get unhashed(): PageSet {
    return this.#kept.clone().subtract(this.#ofRounds)
  }

  /** Hashes of comparable pages, in the order of the table. */
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
