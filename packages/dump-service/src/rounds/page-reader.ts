import { cutRuns, hex, PageferryError, pageBytes, type RunTable } from '@pageferry/base'
import type { Tracker } from '@pageferry/checkpoint'
import { memory } from '@pageferry/kernel'
import { maxBatchPages } from '@pageferry/wire'

export interface ReadPages {
  /** Pages with content. Their bytes are at the front of the buffer, in this order. */
  runs: Float64Array
  nrPages: number
  /** Pages that are all zeros. */
  zeroRuns: Float64Array
  nrZeroPages: number
  /** Pages that could not be read: they were unmapped after the scan. */
  vanished: Float64Array
}

/** Reads pages of the workload and separates those that are all zeros. */
export class PageReader {
  readonly #pid: number
  readonly #memFd: number
  readonly #tracker: Tracker | null
  readonly #isZero = new Uint8Array(maxBatchPages)

  constructor(pid: number, memFd: number, tracker: Tracker | null) {
    this.#pid = pid
    this.#memFd = memFd
    this.#tracker = tracker
  }

  /**
   * @param runs at most maxBatchPages pages
   * @param mayVanish true while the workload runs, since it may unmap pages after the scan; false: that is an error
   */
  read(runs: RunTable, nrRuns: number, out: Uint8Array, mayVanish: boolean): ReadPages {
    const vanished: number[] = []
    const present: number[] = []
    let nrPages = 0
    let table = runs.subarray(0, 2 * nrRuns)
    // Usually one pass. Each page that cannot be read costs one more.
    while (table.length > 0) {
      const got = memory.readRuns(
        this.#pid,
        this.#memFd,
        table,
        table.length >> 1,
        out.subarray(nrPages * pageBytes),
      )
      const { done, rest } = cutRuns(table, got)
      present.push(...done)
      nrPages += got
      if (rest.length === 0) break
      if (!mayVanish) {
        throw new PageferryError(
          'WORKLOAD_CHANGED',
          `page ${hex(rest[0])} of process ${this.#pid} cannot be read`,
        )
      }
      vanished.push(rest[0], 1)
      table = cutRuns(Float64Array.from(rest), 1).rest
    }
    const taken = Float64Array.from(present)
    this.#tracker?.noteRead(taken, taken.length >> 1, out)
    return { ...this.#sortOut(taken, nrPages, out), vanished: Float64Array.from(vanished) }
  }

  #sortOut(taken: Float64Array, nrPages: number, out: Uint8Array) {
    const nonZero = memory.splitZeroPages(out, nrPages, this.#isZero)
    if (nonZero === nrPages) return { runs: taken, nrPages, zeroRuns: new Float64Array(0), nrZeroPages: 0 }
    const content: number[] = []
    const zero: number[] = []
    let at = 0
    for (let r = 0; r < taken.length; r += 2) {
      for (let i = 0; i < taken[r + 1]; i++) append(this.#isZero[at++] === 0 ? content : zero, taken[r] + i)
    }
    return {
      runs: Float64Array.from(content),
      nrPages: nonZero,
      zeroRuns: Float64Array.from(zero),
      nrZeroPages: nrPages - nonZero,
    }
  }
}

function append(runs: number[], page: number): void {
  const last = runs.length - 2
  if (last >= 0 && runs[last] + runs[last + 1] === page) runs[last + 1]++
  else runs.push(page, 1)
}
