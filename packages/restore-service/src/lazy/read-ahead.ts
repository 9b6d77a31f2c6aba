import { type LazyMap, Prefetcher } from '@pageferry/pages'

/** Pages requested ahead and under way. A fault of another thread waits behind 512 KiB at most. */
export const maxPagesAhead = 128
/** Pages per request. The first pages of a window are installed while the others are still under way. */
const maxRequestPages = 16

/**
 * Requests the pages that threads will fault on next (pages/prefetch.ts). The prediction uses today's addresses, the
 * requests use the source's.
 */
export class ReadAhead {
  readonly #prefetcher = new Prefetcher()
  readonly #request: (page: number, nrPages: number) => void
  /** Source pages that were requested here and not answered. */
  readonly #coming = new Set<number>()

  constructor(request: (page: number, nrPages: number) => void) {
    this.#request = request
  }

  get prefetchedPages(): number {
    return this.#prefetcher.prefetched
  }

  get usefulPrefetchedPages(): number {
    return this.#prefetcher.useful
  }

  /** Whether this source page was requested ahead, so that a fault on it needs no request. */
  isComing(source: number): boolean {
    return this.#coming.has(source)
  }

  /** @param isRequested whether a thread waits for that source page, so that it was requested */
  onFault(lazy: LazyMap, tid: number, page: number, isRequested: (source: number) => boolean): void {
    const pages = this.#prefetcher.onFault(tid, page, {
      isMissing: (each) => lazy.isPending(each),
      isRequested: (each) => {
        const source = lazy.toSource(each)
        return this.#coming.has(source) || isRequested(source)
      },
      room: maxPagesAhead - this.#coming.size,
    })
    for (const [first, nr] of runsOf(pages.map((each) => lazy.toSource(each)))) {
      for (let source = first; source < first + nr; source++) this.#coming.add(source)
      this.#request(first, nr)
    }
  }

  answered(first: number, nr: number): void {
    for (let source = first; source < first + nr; source++) this.#coming.delete(source)
  }

  /** The lane is lost, and the answers with it. No thread waits for them. */
  forget(): void {
    this.#coming.clear()
  }
}

/** Joins neighbours into one run, whether the pages ascend or descend; keeps the order. */
function runsOf(pages: readonly number[]): [first: number, nr: number][] {
  const runs: [number, number][] = []
  for (const page of pages) {
    const last = runs.at(-1)
    if (last === undefined || last[1] === maxRequestPages) runs.push([page, 1])
    else if (page === last[0] + last[1]) last[1]++
    else if (page === last[0] - 1) {
      last[0]--
      last[1]++
    } else runs.push([page, 1])
  }
  return runs
}
