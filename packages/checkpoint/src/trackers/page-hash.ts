import { closeSync, openSync } from 'node:fs'
import { pageBytes, type RunTable } from '@pageferry/base'
import { memory } from '@pageferry/kernel'
import { type AreaMap, PageHashes, PageSet } from '@pageferry/pages'
import { readArea } from './pagemap-walk.js'
import { emptyScan, type MemoryScan, scanSharedMemory, type Tracker, trackedAreas } from './tracker.js'

const pagesPerRead = 1024

/**
 * Compares contents, where the kernel tracks nothing: a page counts as written when it differs from the sent bytes. The
 * hash is that of the bytes that were *sent*. So a page that changes between scan and read, and changes back before the
 * freeze, does not pass for clean.
 *
 * XXH64: two contents of one page agree by accident once in 2^64 changes. A user who makes them agree on purpose
 * damages only the memory of his own workload.
 */
export class PageHashTracker implements Tracker {
  readonly kind = 'page-hash'
  readonly #pid: number
  readonly #memFd: number
  readonly #pagemap: number
  readonly #hashes = new PageHashes()
  readonly #known = new PageSet()
  readonly #buffer = Buffer.allocUnsafeSlow(pagesPerRead * pageBytes)
  readonly #out = new BigUint64Array(pagesPerRead)

  constructor(pid: number) {
    this.#pid = pid
    this.#memFd = openSync(`/proc/${pid}/mem`, 'r')
    this.#pagemap = openSync(`/proc/${pid}/pagemap`, 'r')
  }

  scan(map: AreaMap): MemoryScan {
    const scan: MemoryScan = emptyScan()
    for (const area of trackedAreas(map)) {
      if (area.kind === 'shared-anon') scanSharedMemory(this.#pid, area, scan)
      else readArea(this.#pagemap, area, scan, (page) => scan.present.addRange(page, 1))
    }
    scan.present.forEachRun((first, nr) => {
      for (let done = 0; done < nr; done += pagesPerRead) {
        this.#compare(first + done, Math.min(pagesPerRead, nr - done), scan.written)
      }
    })
    return scan
  }

  #compare(first: number, nr: number, written: PageSet): void {
    const got = memory.readRuns(this.#pid, this.#memFd, Float64Array.of(first, nr), 1, this.#buffer)
    memory.hashPages(this.#buffer, got, this.#out)
    for (let i = 0; i < nr; i++) {
      const page = first + i
      if (i < got && this.#known.has(page) && this.#hashes.get(page) === this.#out[i]) continue
      written.addRange(page, 1)
    }
  }

  noteRead(runs: RunTable, nrRuns: number, data: Uint8Array): void {
    let at = 0
    for (let r = 0; r < nrRuns; r++) {
      for (let done = 0; done < runs[2 * r + 1]; done += pagesPerRead) {
        const nr = Math.min(pagesPerRead, runs[2 * r + 1] - done)
        memory.hashPages(data.subarray(at, at + nr * pageBytes), nr, this.#out)
        at += nr * pageBytes
        for (let i = 0; i < nr; i++) this.#store(runs[2 * r] + done + i, this.#out[i])
      }
    }
  }

  #store(page: number, hash: bigint): void {
    this.#hashes.set(page, hash)
    this.#known.addRange(page, 1)
  }

  close(): void {
    closeSync(this.#memFd)
    closeSync(this.#pagemap)
  }
}
