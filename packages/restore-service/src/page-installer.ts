import { PageferryError, pageBytes } from '@pageferry/base'
import type { Restorer } from '@pageferry/checkpoint'
import { memory as kernelMemory, uffd } from '@pageferry/kernel'
import { carriesPages } from '@pageferry/memory'
import { WireError } from '@pageferry/wire'

/** Zeros to write over pages that are there already. */
const zeros = Buffer.alloc(256 * pageBytes)

/**
 * Installs pages in the stopped skeleton. Where userfaultfd is registered: UFFDIO_COPY, and what is there
 * already (of an earlier round) is overwritten. Elsewhere (file mappings, locked and shared memory) the page is
 * written, which makes the private copy.
 */
export class PageInstaller {
  readonly #restorer: Restorer

  constructor(restorer: Restorer) {
    this.#restorer = restorer
  }

  /**
   * Pages with content, and pages that are zeros.
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
      const { memFd } = this.#restorer.skeleton
      if (!registered) {
        kernelMemory.writeRuns(memFd, table, 1, bytes)
        return
      }
      const { state } = uffd.installRuns(this.#restorer.uffd, memFd, table, 1, bytes, 'overwrite', false)
      // The skeleton is stopped and changes nothing: 'again' and 'no-range' cannot be its doing.
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

  /** Cuts runs where registered memory begins and ends. Pages outside the map are the peer's mistake. */
  #split(runs: Float64Array, callback: (first: number, nr: number, registered: boolean) => void): void {
    const { map, registered } = this.#restorer.map
    for (let r = 0; r < runs.length; r += 2) {
      const end = runs[r] + runs[r + 1]
      for (let page = runs[r]; page < end; ) {
        const area = map.find(page)
        if (area === undefined || !carriesPages(area)) {
          const where = area === undefined ? 'not mapped' : `in a ${area.kind} area`
          throw new WireError('OUTSIDE_PROCESS', `page 0x${page.toString(16)} is ${where}`)
        }
        const stop = Math.min(end, area.start + area.nrPages)
        callback(page, stop - page, registered.has(page))
        page = stop
      }
    }
  }
}
