import { type LazyMap, Prefetcher } from '@pageferry/pages'

/** Pages that are on their way unasked: a fault of another thread waits behind 512 KiB at most. */
export const maxPagesAhead = 128
/** Pages of one request: the first of a window are installed while the others are still on their way. */
const maxRequestPages = 16

/**
 * Asks the source for pages that threads will fault on next (pages/prefetch.ts). Which pages those are is said in
 * today's addresses; what is asked for, in the source's.
 */
export class ReadAhead {
  readonly #prefetcher = new Prefetcher()
  readonly #request: (page: number, nrPages: number) => void
  /** Source pages that were asked for here and not answered. */
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

  /** A fault on this source page need not ask for it again. */
  isComing(source: number): boolean {
    return this.#coming.has(source)
  }

  /** @param isRequested whether somebody waits for that source page, so that it was asked for */
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

  /** The lane is lost, and with it the answers. Nobody waits for them. */
  forget(): void {
    this.#coming.clear()
  }
}

/** Neighbours become one run, whether the pages ascend or descend; the order remains. */
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
