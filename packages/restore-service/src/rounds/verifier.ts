import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { PageferryError, pageBytes } from '@pageferry/base'
import type { Restorer } from '@pageferry/checkpoint'
import { memory } from '@pageferry/kernel'
import type { DestinationReport } from '@pageferry/migration'
import { checkInstalled, PageHashes, PageSet } from '@pageferry/pages'
import { type FrameOf, payloadToHashes } from '@pageferry/wire'
import type { FinalSets } from './receiver.js'

const pagesPerRead = 1024

/**
 * --verify on the destination: holds the hashes of the frozen original and compares every page with what is
 * really there: PARENT and PRESENT pages read back from the skeleton, lazy pages as they are installed.
 */
export class Verifier {
  #hashes = new PageHashes()
  readonly #buffer = Buffer.allocUnsafeSlow(pagesPerRead * pageBytes)
  readonly #out = new BigUint64Array(pagesPerRead)
  readonly #zeroHash: bigint
  readonly #seen = new PageSet()
  pages = 0
  mismatches = 0
  /** The first few, for the error message. */
  readonly differing: number[] = []
  complete = false

  constructor() {
    memory.hashPages(Buffer.alloc(pageBytes), 1, this.#out)
    this.#zeroHash = this.#out[0]
  }

  /** Keeps the hashes for a successor. */
  save(file: string): void {
    const words = this.#hashes.toWords()
    writeFileSync(file, new Uint8Array(words.buffer), { mode: 0o600 })
  }

  /** @param before what the dead worker had reported; the lazy pages that it had checked are checked anew */
  static load(file: string, before: DestinationReport['verify']): Verifier {
    const verifier = new Verifier()
    const bytes = readFileSync(file)
    verifier.#hashes = PageHashes.fromWords(new BigUint64Array(Uint8Array.from(bytes).buffer))
    verifier.complete = true
    verifier.pages = before?.pages ?? 0
    verifier.mismatches = before?.mismatches ?? 0
    return verifier
  }

  add(frame: FrameOf<'pageHashes'>, payload: Uint8Array): void {
    const hashes = payloadToHashes(payload)
    let at = 0
    for (let r = 0; r < frame.runs.length; r += 2) {
      for (let i = 0; i < frame.runs[r + 1]; i++) this.#hashes.set(frame.runs[r] + i, hashes[at++])
    }
    this.complete ||= frame.last
  }

  get report(): NonNullable<DestinationReport['verify']> {
    return { pages: this.pages, mismatches: this.mismatches }
  }

  /**
   * The whole stopped skeleton, after the final round: which pages are there, and what is in them.
   * @throws PROTOCOL when the source did not send the hash of every page before it said DumpEnd
   */
  checkSkeleton(restorer: Restorer, sets: FinalSets): void {
    if (!this.complete) throw new PageferryError('PROTOCOL', 'the hashes of the original did not arrive')
    const { missing, unexpected } = checkInstalled(restorer.presentPages(), sets, restorer.map.map)
    this.noteUnexpected(missing)
    this.noteUnexpected(unexpected)
    this.checkInstalled(restorer.pid, sets.parent.clone().union(sets.present).subtract(missing))
  }

  /** @throws VERIFY_FAILED with the first pages that differ */
  throwIfDifferent(): void {
    if (this.mismatches === 0) return
    const which = this.differing.map((page) => `0x${page.toString(16)}`).join(', ')
    throw new PageferryError(
      'VERIFY_FAILED',
      `${this.mismatches} pages of the restored process differ from the original: ${which}`,
    )
  }

  /** Reads pages of the stopped skeleton and compares them. */
  checkInstalled(pid: number, pages: PageSet): void {
    const memFd = openSync(`/proc/${pid}/mem`, 'r')
    try {
      pages.forEachRun((first, nr) => {
        for (let done = 0; done < nr; done += pagesPerRead) {
          const part = Math.min(pagesPerRead, nr - done)
          const table = Float64Array.of(first + done, part)
          const got = memory.readRuns(pid, memFd, table, 1, this.#buffer)
          this.checkPages(table, this.#buffer.subarray(0, got * pageBytes))
          for (let i = got; i < part; i++) this.#differs(first + done + i)
        }
      })
    } finally {
      closeSync(memFd)
    }
  }

  /** Pages that must not be there and are: each counts as a mismatch. */
  noteUnexpected(pages: PageSet): void {
    pages.forEachRun((first, nr) => {
      for (let i = 0; i < nr; i++) this.#differs(first + i)
    })
  }

  /** Page numbers are the source's. */
  checkPages(runs: Float64Array, data: Uint8Array): void {
    let at = 0
    for (let r = 0; r < runs.length; r += 2) {
      for (let done = 0; done < runs[r + 1]; done += pagesPerRead) {
        const nr = Math.min(pagesPerRead, runs[r + 1] - done)
        const bytes = data.subarray(at, at + nr * pageBytes)
        const whole = bytes.length / pageBytes
        at += bytes.length
        memory.hashPages(bytes, whole, this.#out)
        for (let i = 0; i < whole; i++) this.#compare(runs[r] + done + i, this.#out[i])
      }
    }
  }

  /** The same, when somebody else has the pages. */
  checkHashes(runs: Float64Array, hashes: BigUint64Array): void {
    let at = 0
    for (let r = 0; r < runs.length; r += 2) {
      for (let i = 0; i < runs[r + 1]; i++) this.#compare(runs[r] + i, hashes[at++])
    }
  }

  checkZeros(runs: Float64Array): void {
    for (let r = 0; r < runs.length; r += 2) {
      for (let i = 0; i < runs[r + 1]; i++) this.#compare(runs[r] + i, this.#zeroHash)
    }
  }

  #compare(page: number, hash: bigint): void {
    // A page that was on its way when a lane broke comes twice.
    this.pages += this.#seen.addRange(page, 1)
    if (this.#hashes.get(page) !== hash) this.#differs(page)
  }

  #differs(page: number): void {
    this.mismatches++
    if (this.differing.length < 10) this.differing.push(page)
  }
}
