/**
 * Predicts which pages a thread that has just faulted will touch next.
 *
 * After Leap (Al Maruf and Chowdhury, "Effectively Prefetching Remote Memory with Leap", USENIX ATC 2020). For each
 * thread it remembers the distances between faults. The distance that the majority of them has is the thread's trend
 * (Boyer and Moore's vote, over the latest few distances first and over more of them while those disagree). Pages along
 * the trend are requested before they are touched, as many as `window` says:
 *
 *   the fault lies where the trend pointed     window doubles, from 1 up to maxPrefetchWindow
 *   it does not                                window is halved, down to 0
 *   no majority among all distances            window is 0
 *
 * At 0 no page is requested, but faults that follow a trend again are detected all the same, so trying costs nothing. A
 * random workload therefore gets no page that it did not ask for, while a fixed fault-around makes it slower.
 *
 * One thing differs from Leap, which sees every access to prefetched pages: userfaultfd is silent about pages that are
 * present. A stream that ran over thirty prefetched pages faults thirty-one pages further on. So the trend points to
 * the first page along it that is *still missing*, no matter how the pages before it came.
 */
export const maxPrefetchWindow = 32
/** Distances remembered per thread; Leap's history. */
const maxDeltas = 32
/** Size of the first vote. */
const smallestVote = 4
/** Pages without a fault over which a stream is followed: more than a push of neighbours brings at once. */
const maxPassedPages = 256
/** Threads that are remembered, the latest to fault: at 400 bytes each they are 100 KiB. */
const maxThreads = 256

/** States of pages at the moment of a fault. */
export interface PageStates {
  /** Still to come. */
  isMissing(page: number): boolean
  /** Already requested, for whatever reason. */
  isRequested(page: number): boolean
  /** Largest number of pages that may be returned. */
  room: number
}

interface Thread {
  lastPage: number
  /** A ring: the latest is at (nrDeltas - 1) % maxDeltas. */
  readonly deltas: Float64Array
  nrDeltas: number
  /** Trend of the last fault, in pages; 0: none. */
  stride: number
  window: number
  /** Requested and not passed yet, in the order of the stream. */
  ahead: number[]
}

export class Prefetcher {
  readonly #threads = new Map<number, Thread>()
  /** Pages that were returned for prefetching. */
  prefetched = 0
  /** Those of them that a stream is known to have reached. The last pages that are touched are never counted. */
  useful = 0

  get nrThreads(): number {
    return this.#threads.size
  }

  /**
   * A thread has faulted on a page that is still to come. Returns the pages that it will probably touch next, the
   * nearest first, without those that are present or requested already.
   */
  onFault(tid: number, page: number, states: PageStates): number[] {
    const thread = this.#remember(tid, page)
    // Its first fault, or one that is raised again because the thread was woken too early.
    if (thread.lastPage === page) return []
    const delta = deltaTo(thread, page, states)
    thread.deltas[thread.nrDeltas++ % maxDeltas] = delta
    thread.lastPage = page
    thread.stride = majority(thread)
    if (thread.stride === 0) thread.window = 0
    else if (delta === thread.stride) thread.window = Math.min(2 * thread.window || 1, maxPrefetchWindow)
    else thread.window >>= 1
    if (delta !== thread.stride) {
      thread.ahead = []
      return this.#ask(thread, thread.window, states)
    }
    // It came to a page that is under way: pages arrive more slowly than they are touched, so look twice as far.
    const isLate = thread.ahead.includes(page)
    this.#settle(thread)
    return this.#ask(thread, isLate ? 2 * thread.window : thread.window, states)
  }

  /** Forgets the thread that has been silent longest. */
  #remember(tid: number, page: number): Thread {
    let thread = this.#threads.get(tid)
    if (thread === undefined) {
      const deltas = new Float64Array(maxDeltas)
      thread = { lastPage: page, deltas, nrDeltas: 0, stride: 0, window: 0, ahead: [] }
    } else this.#threads.delete(tid)
    this.#threads.set(tid, thread)
    if (this.#threads.size > maxThreads) this.#threads.delete(this.#threads.keys().next().value as number)
    return thread
  }

  /** The stream has come to `lastPage`, and has passed everything before it. */
  #settle(thread: Thread): void {
    const direction = Math.sign(thread.stride)
    const left = thread.ahead.filter((page) => (page - thread.lastPage) * direction > 0)
    this.useful += thread.ahead.length - left.length
    thread.ahead = left
  }

  #ask({ lastPage, stride, ahead }: Thread, reach: number, states: PageStates): number[] {
    const pages: number[] = []
    for (let i = 1; i <= reach && pages.length < states.room; i++) {
      const page = lastPage + i * stride
      if (states.isMissing(page) && !states.isRequested(page)) pages.push(page)
    }
    ahead.push(...pages)
    this.prefetched += pages.length
    return pages
  }
}

/** The distance to a fault. Present pages of the stream do not count: it ran over them without a fault. */
function deltaTo({ lastPage, stride }: Thread, page: number, states: PageStates): number {
  for (const step of stride === 0 ? [1] : [stride, 1]) {
    const steps = (page - lastPage) / step
    if (!Number.isInteger(steps) || steps < 1 || steps > maxPassedPages) continue
    let at = lastPage + step
    while (at !== page && !states.isMissing(at)) at += step
    if (at === page) return step
  }
  return page - lastPage
}

/** The distance shared by more than half of the latest 4, 8, 16 or 32, and by at least two; 0: none. */
function majority({ deltas, nrDeltas }: Thread): number {
  const known = Math.min(nrDeltas, maxDeltas)
  const latest = (i: number) => deltas[(nrDeltas - 1 - i) % maxDeltas]
  for (let size = smallestVote; ; size *= 2) {
    const voters = Math.min(size, known)
    let candidate = 0
    let lead = 0
    for (let i = 0; i < voters; i++) {
      if (lead === 0) candidate = latest(i)
      lead += latest(i) === candidate ? 1 : -1
    }
    let votes = 0
    for (let i = 0; i < voters; i++) if (latest(i) === candidate) votes++
    if (votes > 1 && 2 * votes > voters) return candidate
    if (size >= known) return 0
  }
}
