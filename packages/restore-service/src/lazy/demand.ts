import { performance } from 'node:perf_hooks'
import { pagesInRuns } from '@pageferry/base'
import type { LazyMap, PageSet } from '@pageferry/pages'
import { type FrameOf, faultPendingMax, maxFaultPages, maxRunsPerDiscard } from '@pageferry/wire'
import type { FaultLane } from '../lanes/fault-lane.js'
import type { Fault } from './address-space.js'
import { maxPagesAhead, ReadAhead } from './read-ahead.js'

/** More samples than this are not kept; the count goes on. 8 bytes each. */
const maxSamples = 1_000_000
/** Pulls under way: a fault waits behind 512 KiB at most. */
const maxPulls = 2
/** Pages that threads wait for and that are asked for; more wait in the backlog. The rest of the lane is for the other two. */
const maxDemands = faultPendingMax - maxPagesAhead - maxPulls

/** Requests leave from it. Frames are dropped while it is down; `askAgain` follows when it is up. */
export type RequestLane = Pick<FaultLane, 'isOpen' | 'send'>

/** Where replies go, and what is still to come. Page numbers are the source's. */
export interface Wanted {
  /** Installs the pages wherever they are lazy; answers how many were. */
  install(frame: Pick<FrameOf<'pageReply'>, 'runs' | 'zeroRuns'>, payload: Uint8Array): number
  isPending(source: number): boolean
  pendingSourcePages(): PageSet
}

/**
 * Requests of one address space's pages on the fault lane, and the replies. There are three kinds of request:
 *
 *   demand  one page that a thread waits for; one fault, or several
 *   ahead   pages that are likely to be touched next, see ReadAhead; the source leaves out what it has pushed
 *   pull    pages that do not come by themselves: the source was told to wait, or what it has sent was lost
 *
 * Every request is answered once while its connection lives; a new connection is asked anew.
 */
export class Demand {
  readonly #identity: { asId: number; round: number }
  readonly #wanted: Wanted
  readonly #ahead: ReadAhead | null
  readonly #lane: RequestLane
  #requestId = 0
  /** Demands under way, with the time of the fault. */
  readonly #requested = new Map<number, number>()
  /** Demands beyond `maxDemands`, asked for when there is room. */
  readonly #backlog = new Set<number>()
  /** Left to pull; null: nothing was pulled yet. */
  #toPull: PageSet | null = null
  /** Request ids of the pulls under way. */
  readonly #pulls = new Set<number>()
  /** Microseconds from a fault to the installation of its page. */
  readonly samples: number[] = []
  #maxUs = 0
  #faults = 0

  /** @param prefetch whether to ask for pages ahead */
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

  /** The lane has a new connection: what was asked for on the old one is asked for again. */
  askAgain(): void {
    this.#ahead?.forget()
    for (const page of this.#requested.keys()) this.#request(page, 1)
    if (this.#toPull !== null) {
      // Replies to pulls under way are lost; the next look at the LazyMaps finds those pages again.
      this.#pulls.clear()
      this.pull()
    }
  }

  /** A thread waits for a page that is lazy. The page itself is asked for first, so that the thread is woken first. */
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

  /** Asks for pages that no thread has touched and that do not come by themselves. */
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

  /** Spares the network pages that the workload has given back. Should the frame get lost, they come and are dropped. */
  discard(pages: PageSet): void {
    const table = pages.runTable()
    for (let at = 0; at < table.length; at += 2 * maxRunsPerDiscard) {
      const runs = table.slice(at, at + 2 * maxRunsPerDiscard)
      this.#lane.send({ type: 'discard', ...this.#identity, runs })
    }
  }

  /** Installs the reply before anything else is done: threads wait for it. */
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

  /** It was asked for ahead, had been pushed already, and is faulted on before it has come with the push. */
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

  /** The longest wait of all, also of those beyond `samples`; microseconds. */
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
