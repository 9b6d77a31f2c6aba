import { performance } from 'node:perf_hooks'
import { pagesInRuns } from '@pageferry/base'
import type { LazyMap, PageSet } from '@pageferry/pages'
import { type FrameOf, faultPendingMax, maxFaultPages, maxRunsPerDiscard } from '@pageferry/wire'
import type { FaultLane } from '../lanes/fault-lane.js'
import type { Fault } from './address-space.js'
import { maxPagesAhead, ReadAhead } from './read-ahead.js'

/** Samples beyond this number are counted and not kept. 8 bytes each. */
const maxSamples = 1_000_000
/** Pulls under way. A fault waits behind 512 KiB at most. */
const maxPulls = 2
/** Demands under way; more wait in the backlog. The rest of the lane is for read-ahead and pulls. */
const maxDemands = faultPendingMax - maxPagesAhead - maxPulls

/** The lane for requests. It drops frames while it is down; `askAgain` follows when it is up. */
export type RequestLane = Pick<FaultLane, 'isOpen' | 'send'>

/** Receives the pages of replies, and knows which are still missing. Page numbers are the source's. */
export interface Wanted {
  /** Installs the pages wherever they are lazy; returns how many were. */
  install(frame: Pick<FrameOf<'pageReply'>, 'runs' | 'zeroRuns'>, payload: Uint8Array): number
  isPending(source: number): boolean
  pendingSourcePages(): PageSet
}

/**
 * Requests for one address space's pages on the fault lane, and the replies. There are three kinds of request:
 *
 *   demand  one page that a thread waits for; one fault, or several
 *   ahead   pages that are likely to be touched next, see ReadAhead; the source leaves out pages that it has pushed
 *   pull    pages that do not come by themselves: the source was told to wait, or the pages that it sent were lost
 *
 * Every request is answered once while its connection lives. On a new connection they are sent again.
 */
export class Demand {
  readonly #identity: { asId: number; round: number }
  readonly #wanted: Wanted
  readonly #ahead: ReadAhead | null
  readonly #lane: RequestLane
  #requestId = 0
  /** Demands under way, with the time of the fault. */
  readonly #requested = new Map<number, number>()
  /** Demands beyond `maxDemands`, requested when there is room. */
  readonly #backlog = new Set<number>()
  /** Pages left to pull; null: no pull has begun. */
  #toPull: PageSet | null = null
  /** Request ids of the pulls under way. */
  readonly #pulls = new Set<number>()
  /** Microseconds from a fault to the installation of its page. */
  readonly samples: number[] = []
  #maxUs = 0
  #faults = 0

  /** @param prefetch whether to request pages ahead */
  constructor(
    identity: { asId: number; round: number },
    lane: RequestLane,
    prefetch: boolean,
    wanted: Wanted,
  ) {
    this.#identity = identity
    this.#lane = lane
    this.#wanted = wanted
    this.#ahead = prefetch ? new ReadAhead((page, nrPages) => this.#request(page, nrPages, true)) : null
  }

  /** The lane has a new connection: repeats the requests of the old one. */
  askAgain(): void {
    this.#ahead?.forget()
    for (const page of this.#requested.keys()) this.#request(page, 1)
    if (this.#toPull !== null) {
      // Replies to pulls under way are lost; the next look at the LazyMaps finds those pages again.
      this.#pulls.clear()
      this.pull()
    }
  }

  /** A thread waits for a lazy page. The page itself is requested first, so that the thread is woken first. */
  onFault(lazy: LazyMap, { page, tid }: Fault, source: number): void {
    this.#faults++
    if (!this.#requested.has(source)) {
      if (this.#requested.size >= maxDemands) this.#backlog.add(source)
      else this.#demand(source)
    }
    this.#ahead?.onFault(lazy, tid, page, (each) => this.#requested.has(each))
  }

  #demand(source: number): void {
    this.#requested.set(source, performance.now())
    if (this.#ahead?.isComing(source) !== true) this.#request(source, 1)
  }

  /** Requests pages that no thread has touched and that do not come by themselves. */
  pull(): void {
    if (!this.#lane.isOpen) return
    if (this.#toPull === null || (this.#toPull.isEmpty && this.#pulls.size === 0)) {
      this.#toPull = this.#wanted.pendingSourcePages()
    }
    while (this.#pulls.size < maxPulls && !this.#toPull.isEmpty) {
      const page = this.#toPull.firstFrom(0)
      const nrPages = this.#toPull.runLength(page, maxFaultPages)
      this.#toPull.removeRange(page, nrPages)
      this.#pulls.add(this.#request(page, nrPages))
    }
  }

  #request(page: number, nrPages: number, ahead = false): number {
    this.#requestId = (this.#requestId % 0xffff_ffff) + 1
    const requestId = this.#requestId
    this.#lane.send({ type: 'pageRequest', ...this.#identity, requestId, page, nrPages, ahead })
    return requestId
  }

  /** Saves the network from pages that the workload has discarded. If the frame is lost, they come and are dropped. */
  discard(pages: PageSet): void {
    const table = pages.runTable()
    for (let at = 0; at < table.length; at += 2 * maxRunsPerDiscard) {
      const runs = table.slice(at, at + 2 * maxRunsPerDiscard)
      this.#lane.send({ type: 'discard', ...this.#identity, runs })
    }
  }

  /** Installs the reply before anything else: threads wait for it. */
  onReply(frame: FrameOf<'pageReply'>, payload: Uint8Array): void {
    this.#wanted.install(frame, payload)
    this.#ahead?.answered(frame.page, frame.nrPages)
    for (let page = frame.page; page < frame.page + frame.nrPages; page++) this.#answer(page, frame)
    this.#askBacklog()
    if (this.#pulls.delete(frame.requestId)) this.pull()
  }

  #answer(page: number, frame: FrameOf<'pageReply'>): void {
    const began = this.#requested.get(page)
    if (began === undefined) return
    if (this.#isLeftOut(page, frame)) {
      this.#request(page, 1)
      return
    }
    this.#requested.delete(page)
    const us = (performance.now() - began) * 1000
    this.#maxUs = Math.max(this.#maxUs, us)
    if (this.samples.length < maxSamples) this.samples.push(us)
  }

  /** The page was requested ahead after it had been pushed, and a thread faults on it before the push arrives. */
  #isLeftOut(source: number, { nrPages, runs, zeroRuns }: FrameOf<'pageReply'>): boolean {
    if (pagesInRuns(runs) + pagesInRuns(zeroRuns) === nrPages) return false
    return this.#wanted.isPending(source)
  }

  #askBacklog(): void {
    for (const page of this.#backlog) {
      if (this.#requested.size >= maxDemands) return
      this.#backlog.delete(page)
      this.#demand(page)
    }
  }

  /** Faults on lazy pages so far. */
  get faults(): number {
    return this.#faults
  }

  /** The longest wait of all, including those beyond `samples`; microseconds. */
  get maxUs(): number {
    return this.#maxUs
  }

  get prefetchedPages(): number {
    return this.#ahead?.prefetchedPages ?? 0
  }

  get usefulPrefetchedPages(): number {
    return this.#ahead?.usefulPrefetchedPages ?? 0
  }
}
