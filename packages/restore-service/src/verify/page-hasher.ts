import { pageBytes, pagesInRuns } from '@pageferry/base'
import { memory } from '@pageferry/kernel'
import { PageSet } from '@pageferry/pages'
import { maxHashPages, maxRunsPerHashes } from '@pageferry/wire'

/** XXH64 of a page that is all zeros. */
export const zeroHash: bigint = hashesOf(new Uint8Array(pageBytes))[0]

/** One hash per page of the bytes. */
export function hashesOf(pages: Uint8Array): BigUint64Array {
  const hashes = new BigUint64Array(pages.length / pageBytes)
  memory.hashPages(pages, hashes.length, hashes)
  return hashes
}

export function zeroHashesOf(runs: Float64Array): BigUint64Array {
  return new BigUint64Array(pagesInRuns(runs)).fill(zeroHash)
}

/** Cuts a set into run tables of at most this many pages. The default is the limit of one HashRequest. */
export function* piecesOf(
  pages: PageSet,
  maxPages = maxHashPages,
): Generator<{ runs: Float64Array; nrPages: number }> {
  const table = new Float64Array(2 * maxRunsPerHashes)
  for (let from = pages.isEmpty ? -1 : 0; from >= 0; ) {
    const { nrRuns, nrPages, nextPage } = pages.fillRunTable(table, from, maxRunsPerHashes, maxPages)
    from = nextPage
    if (nrPages > 0) yield { runs: table.slice(0, 2 * nrRuns), nrPages }
  }
}

/**
 * Reads pages of the stopped skeleton back. They must be present: a missing page would wait for a fault to be served.
 */
export class PageHasher {
  readonly #pid: number
  readonly #memFd: number
  readonly #maxPages: number
  readonly #buffer: Buffer

  /** @param memFd an open /proc/PID/mem, which stays the caller's */
  constructor(pid: number, memFd: number, maxPages = maxHashPages) {
    this.#pid = pid
    this.#memFd = memFd
    this.#maxPages = maxPages
    this.#buffer = Buffer.allocUnsafeSlow(maxPages * pageBytes)
  }

  /** Hashes at most `maxPages` pages. Fewer hashes: the page behind them cannot be read. */
  hash(runs: Float64Array): BigUint64Array {
    const got = memory.readRuns(this.#pid, this.#memFd, runs, runs.length / 2, this.#buffer)
    return hashesOf(this.#buffer.subarray(0, got * pageBytes))
  }

  forEachPiece(runs: Float64Array, callback: (runs: Float64Array, hashes: BigUint64Array) => void): void {
    if (runs.length === 0) return
    for (const piece of piecesOf(PageSet.fromRuns(runs), this.#maxPages))
      callback(piece.runs, this.hash(piece.runs))
  }
}
