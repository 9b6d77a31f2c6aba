import { PageferryError, pageBytes } from '@pageferry/base'
import type { Restorer } from '@pageferry/checkpoint'
import { memory, uffd } from '@pageferry/kernel'
import { carriesPages } from '@pageferry/pages'
import { WireError } from '@pageferry/wire'

/** Zeros to write over pages that exist already. */
const zeros = Buffer.alloc(256 * pageBytes)

/** Ranges that may take pages of a round: three numbers per area, for `PageInstaller`. */
export function installRanges({ map, registered }: Restorer['map']): Float64Array {
  const areas = map.areas.filter(carriesPages)
  return Float64Array.from(
    areas.flatMap(({ start, nrPages }) => [start, nrPages, registered.has(start) ? 1 : 0]),
  )
}

/**
 * Installs pages in the stopped skeleton. Where userfaultfd is registered it uses UFFDIO_COPY and overwrites pages of
 * an earlier round. Elsewhere (file mappings, locked and shared memory) it writes the page, which makes the private
 * copy.
 */
export class PageInstaller {
  readonly #uffd: number
  /** /proc/PID/mem, for writing. */
  readonly #memFd: number
  readonly #ranges: Float64Array

  /** @param ranges as `installRanges` returns them */
  constructor(uffdFd: number, memFd: number, ranges: Float64Array) {
    this.#uffd = uffdFd
    this.#memFd = memFd
    this.#ranges = ranges
  }

  /**
   * Installs pages with content, and pages of zeros.
   * @throws WireError OUTSIDE_PROCESS when one of them is not memory of the process; nothing was installed then
   */
  installBatch(runs: Float64Array, data: Uint8Array, zeroRuns: Float64Array): void {
    for (const table of [runs, zeroRuns]) this.#split(table, () => {})
    this.#install(runs, data)
    this.#zero(zeroRuns)
  }

  #install(runs: Float64Array, data: Uint8Array): void {
    let at = 0
    this.#split(runs, (first, nr, registered) => {
      const bytes = data.subarray(at, at + nr * pageBytes)
      at += nr * pageBytes
      const table = Float64Array.of(first, nr)
      if (!registered) {
        memory.writeRuns(this.#memFd, table, 1, bytes)
        return
      }
      const { state } = uffd.installRuns(this.#uffd, this.#memFd, table, 1, bytes, 'overwrite', false)
      // The skeleton is stopped and changes nothing: it cannot cause 'again' or 'no-range'.
      if (state !== 'done') throw new PageferryError('INTERNAL', `UFFDIO_COPY into the skeleton: ${state}`)
    })
  }

  #zero(runs: Float64Array): void {
    for (let r = 0; r < runs.length; r += 2) {
      for (let done = 0; done < runs[r + 1]; done += 256) {
        const nr = Math.min(256, runs[r + 1] - done)
        this.#install(Float64Array.of(runs[r] + done, nr), zeros.subarray(0, nr * pageBytes))
      }
    }
  }

  /** Cuts runs at the borders of registered memory. A page outside the map is the peer's mistake. */
  #split(runs: Float64Array, callback: (first: number, nr: number, registered: boolean) => void): void {
    const ranges = this.#ranges
    for (let r = 0; r < runs.length; r += 2) {
      const end = runs[r] + runs[r + 1]
      let at = this.#rangeFrom(runs[r])
      for (let page = runs[r]; page < end; at += 3) {
        if (at === ranges.length || ranges[at] > page) {
          throw new WireError(
            'OUTSIDE_PROCESS',
            `page 0x${page.toString(16)} is in no area whose pages are moved`,
          )
        }
        const stop = Math.min(end, ranges[at] + ranges[at + 1])
        callback(page, stop - page, ranges[at + 2] !== 0)
        page = stop
      }
    }
  }

  /** Index of the first range that ends behind the page. */
  #rangeFrom(page: number): number {
    let low = 0
    let high = this.#ranges.length / 3
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#ranges[3 * middle] + this.#ranges[3 * middle + 1] <= page) low = middle + 1
      else high = middle
    }
    return 3 * low
  }
}
