import { performance } from 'node:perf_hooks'
import { addressOf, type Logger, pageBytes, pageOf, pagesInRuns } from '@pageferry/base'
import { type InstallGate, Poller, uffd } from '@pageferry/kernel'
import { type DestinationReport, faultsFromSamples } from '@pageferry/migration'
import { type MapEvent, PageSet } from '@pageferry/pages'
import { type FrameOf, faultPendingMax, maxFaultPages, maxRunsPerDiscard, WireError } from '@pageferry/wire'
import type { Pushed } from '../lanes/bulk-messages.js'
import type { FaultLane } from '../lanes/fault-lane.js'
import type { RestoredProcess } from '../process.js'
import type { Verifier } from '../rounds/verifier.js'
import {
  changeSpace,
  type Fault,
  type Holder,
  holdChild,
  isGone,
  isQuiet,
  putOff,
  readSpace,
  releaseSpace,
  type Space,
  settle,
  wakeRange,
} from './address-space.js'
import { Enlarging } from './mlocked-mremap.js'
import { maxPagesAhead, ReadAhead } from './read-ahead.js'
import { Standstill } from './standstill.js'

export interface PostcopyOptions {
  /** The workload's address space, and after a takeover those of its children. */
  spaces: Space[]
  /** Another worker served them before: part of what the source has sent is lost. */
  takenOver: boolean
  asId: number
  round: number
  /** Ask for pages that will probably be touched next. */
  prefetch: boolean
  verifier: Verifier | null
  log: Logger
  keeper: Holder
  onProgress(pending: number, faults: number, installed: number): void
  /** A fork's event was read, and its userfaultfd is in our table only. For an injected fault. */
  onForkRead(): void
  /** To be held still for moments, see Standstill; to be looked at, see Enlarging. */
  process: Pick<RestoredProcess, 'holdStill' | 'thaw' | 'pid'>
}

/** More samples than this are not kept; the count goes on. 8 bytes each. */
const maxSamples = 1_000_000
const progressMs = 200
/** Without a page for this long the destination asks for the rest itself. */
const stallMs = 500
/** Requests of that kind under way: a fault waits behind 512 KiB at most. */
const maxPulls = 2
/** Pages that threads wait for and that are asked for; more wait here. The rest of the fault lane is for what nobody waits for. */
const maxDemands = faultPendingMax - maxPagesAhead - maxPulls
/** From this number of address spaces on, each fork looks for those that have ended. */
const manySpaces = 8

/**
 * Post-copy on the destination. Events and faults are served on this one thread, and what it installs comes after every
 * event that it has read: a page that the workload discarded is never filled with its old content afterwards. The bulk
 * lanes install from threads of their own, through a gate that closes for whatever an event names (InstallGate). The
 * kernel helps: while an event waits to be read, UFFDIO_COPY answers EAGAIN.
 *
 * Who decides what is still to come is the LazyMap alone, and it outlives this process (journal.ts). What
 * the source believes to have sent is only the order of things: whatever got lost on the way, in a broken lane or
 * in a worker that was killed, is asked for again (`#pull`).
 */
export class Postcopy {
  readonly #options: PostcopyOptions
  readonly #spaces: Space[]
  /** Source pages asked for and not answered, with the time of the fault. */
  readonly #requested = new Map<number, number>()
  /** Faults beyond `maxDemands`, asked for when there is room. */
  readonly #backlog = new Set<number>()
  readonly #samples: number[] = []
  #faults = 0
  #maxUs = 0
  #pushed = 0
  #requestId = 0
  #faultLane: Pick<FaultLane, 'isOpen' | 'send'> | null = null
  readonly #ahead: ReadAhead | null
  readonly #standstill: Standstill
  readonly #enlarging: Enlarging
  /** What is still to be asked for without a fault, and the requests under way. */
  #toPull: PageSet | null = null
  readonly #pulls = new Set<number>()
  /** Source pages that the workload has given back before they came. */
  readonly #discarded = new PageSet()
  /** Pages of the workload that a bulk lane found in no area. */
  readonly #lost = new PageSet()
  /** Address spaces that were not quiet, and will be looked at again soon. */
  readonly #looking = new Set<Space>()
  #lastPending = -1
  #pushBegan: boolean
  #done: () => void = () => {}
  #failed: (error: unknown) => void = () => {}
  #lastProgressAt = 0
  readonly #began = performance.now()
  #drainMs = 0

  constructor(options: PostcopyOptions) {
    this.#options = options
    this.#spaces = options.spaces
    this.#pushBegan = options.takenOver
    this.#standstill = new Standstill(options.process)
    this.#enlarging = new Enlarging(options.process, options.log)
    if (options.takenOver) this.#standstill.end()
    this.#ahead = options.prefetch
      ? new ReadAhead((page, nrPages) => this.#request(page, nrPages, true))
      : null
  }

  /** Serves until no page of any address space is lazy. */
  run(signal: AbortSignal): Promise<void> {
    const stalled = setInterval(() => this.#guard(() => this.#checkStalled()), stallMs)
    return new Promise<void>((resolve, reject) => {
      this.#done = resolve
      this.#failed = reject
      signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true })
      for (const space of this.#spaces) {
        this.#watch(space)
        this.#lookAgain(space)
      }
      if (this.#options.takenOver) this.#pull()
      this.#checkDrained()
    }).finally(() => {
      clearInterval(stalled)
      if (this.#standstill.isHeld) this.#standstill.end()
      for (const space of this.#spaces) space.poller?.close()
    })
  }

  get report(): Omit<DestinationReport, 'verify' | 'blackout'> {
    const kept = faultsFromSamples(this.#samples)
    const maxUs = Math.max(kept.maxUs, Math.round(this.#maxUs))
    const faults = { ...kept, count: this.#faults, maxUs }
    const { prefetchedPages = 0, usefulPrefetchedPages = 0 } = this.#ahead ?? {}
    return {
      ...{ faults, prefetchedPages, usefulPrefetchedPages },
      ...{ pushedPages: this.#pushed, drainMs: this.#drainMs },
    }
  }

  /** A new fault lane: what was asked for on the old one is asked for again. */
  attachFaultLane(lane: Pick<FaultLane, 'isOpen' | 'send'>): void {
    this.#faultLane = lane
    this.#ahead?.forget()
    for (const page of this.#requested.keys()) this.#request(page, 1)
    if (this.#toPull !== null) {
      // Replies to what was under way are lost; the next look at the LazyMap finds those pages again.
      this.#pulls.clear()
      this.#pull()
    }
  }

  /** The workload's process is gone; children go on. */
  processGone(): void {
    this.#spaces[0]?.lazy.clear()
    this.#checkDrained()
  }

  #guard(action: () => void): void {
    try {
      action()
    } catch (cause) {
      this.#failed(cause)
    }
  }

  #watch(space: Space): void {
    space.poller = new Poller(space.uffd, (readable, error) => {
      if (error !== undefined || !readable) return
      this.#guard(() => {
        this.#readEvents(space)
        this.#checkDrained()
      })
    })
  }

  /**
   * First what changes the address space, in its order, then the faults: serving one may have to read more events,
   * and those come after all of these.
   */
  #readEvents(space: Space): void {
    const events = readSpace(this.#options.keeper, space)
    const faults: Fault[] = []
    for (const event of events) {
      if (event.type === 'fork') this.#onFork(space, event.fd)
      else if (event.type === 'pagefault') faults.push({ page: pageOf(event.address), tid: event.tid })
      else changeSpace(space, event)
    }
    if (!this.#settle(space)) {
      putOff(space, faults)
      this.#lookAgain(space)
      return
    }
    // What cannot be served after all is put off anew.
    for (const fault of [...space.faults.splice(0), ...faults]) this.#onFault(space, fault)
    if (!this.#lost.isEmpty && space === this.#spaces[0]) this.#noteLost(space)
    if (!this.#looking.has(space)) space.waitsSince = null
    if (space.gate?.takeStarving() === true) this.#standstill.beginAfter(Number.NEGATIVE_INFINITY)
  }

  #settle(space: Space): boolean {
    if (!settle(this.#options.keeper, space, (event) => this.#noteDiscard(space, event))) return false
    this.#sayDiscarded()
    return true
  }

  /** A thread that goes on after its change says nothing. */
  #lookAgain(space: Space): void {
    space.waitsSince ??= performance.now()
    this.#standstill.beginAfter(space.waitsSince)
    if (space === this.#spaces[0]) this.#enlarging.letGo(space)
    if (this.#looking.has(space)) return
    this.#looking.add(space)
    setImmediate(() => {
      this.#looking.delete(space)
      if (!this.#spaces.includes(space)) return
      this.#guard(() => {
        this.#readEvents(space)
        this.#checkDrained()
      })
    })
  }

  /** A child that was forked before may still need what its parent has given back: then nothing is said. */
  #noteDiscard({ lazy }: Space, event: MapEvent): void {
    if (this.#spaces.length > 1 || event.type === 'remap') return
    lazy.forEachPendingIn(event.first, event.nr, (source, nr) => this.#discarded.addRange(source, nr))
  }

  /** Spares the network what nobody will read. Should it get lost, the pages come and are dropped. */
  #sayDiscarded(): void {
    if (this.#discarded.isEmpty) return
    const { asId, round } = this.#options
    const table = this.#discarded.runTable()
    for (let at = 0; at < table.length; at += 2 * maxRunsPerDiscard) {
      const runs = table.slice(at, at + 2 * maxRunsPerDiscard)
      this.#faultLane?.send({ type: 'discard', asId, round, runs })
    }
    this.#discarded.clear()
  }

  #onFork(parent: Space, fd: number): void {
    this.#options.onForkRead()
    const child = holdChild(this.#options.keeper, parent, fd, this.#options.log)
    this.#spaces.push(child)
    this.#watch(child)
    if (child.unsettled.length > 0) this.#lookAgain(child)
    if (this.#spaces.length < manySpaces) return
    for (const space of this.#spaces) if (space !== child && isGone(space)) space.lazy.clear()
  }

  /** The page itself is asked for first, so that the thread is woken first. */
  #onFault(space: Space, fault: Fault): void {
    const { page, tid } = fault
    const source = space.lazy.lookup(page)
    if (source === 'zero') {
      this.#zero(space, fault)
      return
    }
    this.#faults++
    if (!this.#requested.has(source)) {
      if (this.#requested.size >= maxDemands) this.#backlog.add(source)
      else this.#demand(source)
    }
    this.#ahead?.onFault(space.lazy, tid, page, (each) => this.#requested.has(each))
  }

  #demand(source: number): void {
    this.#requested.set(source, performance.now())
    if (this.#ahead?.isComing(source) !== true) this.#request(source, 1)
  }

  /** Stack growth, a grown mapping, a hole, or discarded memory. */
  #zero(space: Space, fault: Fault): void {
    const { page } = fault
    const { state } = uffd.zeroRuns(space.uffd, Float64Array.of(page, 1), 1, true)
    if (state === 'again') {
      // Something else may lie there by then.
      putOff(space, [fault])
      this.#lookAgain(space)
    } else if (state === 'no-range') {
      // Unmapped meanwhile, or mapped anew without us: the thread has to look again.
      wakeRange(space, addressOf(page), BigInt(pageBytes))
    }
  }

  #request(page: number, nrPages: number, ahead = false): number {
    const { asId, round } = this.#options
    this.#requestId = (this.#requestId % 0xffff_ffff) + 1
    this.#faultLane?.send({
      type: 'pageRequest',
      asId,
      round,
      requestId: this.#requestId,
      page,
      nrPages,
      ahead,
    })
    return this.#requestId
  }

  /** Asks for pages that nobody has touched and that do not come by themselves. */
  #pull(): void {
    if (this.#faultLane?.isOpen !== true) return
    if (this.#toPull === null || (this.#toPull.isEmpty && this.#pulls.size === 0)) {
      this.#toPull = new PageSet()
      for (const { lazy } of this.#spaces) this.#toPull.union(lazy.pendingSourcePages())
    }
    while (this.#pulls.size < maxPulls && !this.#toPull.isEmpty) {
      const page = this.#toPull.firstFrom(0)
      const nrPages = this.#toPull.runLength(page, maxFaultPages)
      this.#toPull.removeRange(page, nrPages)
      this.#pulls.add(this.#request(page, nrPages))
    }
  }

  /** A source that has not begun to push was told to wait (pushDelayMs): nothing of it can be lost. */
  #checkStalled(): void {
    const pending = this.pendingPages
    if (pending === this.#lastPending && pending > 0 && this.#pushBegan) this.#pull()
    this.#lastPending = pending
  }

  onReply(frame: FrameOf<'pageReply'>, payload: Uint8Array): void {
    this.#checkIdentity(frame)
    const { verifier } = this.#options
    verifier?.checkPages(frame.runs, payload)
    verifier?.checkZeros(frame.zeroRuns)
    this.#install(frame, payload)
    this.#ahead?.answered(frame.page, frame.nrPages)
    for (let page = frame.page; page < frame.page + frame.nrPages; page++) {
      const began = this.#requested.get(page)
      if (began === undefined) continue
      if (this.#isLeftOut(page, frame)) {
        this.#request(page, 1)
        continue
      }
      this.#requested.delete(page)
      const us = (performance.now() - began) * 1000
      this.#maxUs = Math.max(this.#maxUs, us)
      if (this.#samples.length < maxSamples) this.#samples.push(us)
    }
    this.#askBacklog()
    if (this.#pulls.delete(frame.requestId)) this.#pull()
    this.#checkDrained()
  }

  /** It was asked for ahead, had been pushed already, and is faulted on before it has come with the push. */
  #isLeftOut(source: number, { nrPages, runs, zeroRuns }: FrameOf<'pageReply'>): boolean {
    if (pagesInRuns(runs) + pagesInRuns(zeroRuns) === nrPages) return false
    const page = Float64Array.of(source, 1)
    return this.#spaces.some(({ lazy }) => lazy.sourceRunsPendingFor(page).length > 0)
  }

  #askBacklog(): void {
    for (const page of this.#backlog) {
      if (this.#requested.size >= maxDemands) return
      this.#backlog.delete(page)
      this.#demand(page)
    }
  }

  /**
   * What a bulk lane has done with a batch. The LazyMap hears of it after the fact, and only of pages that no event has
   * named since: something else may lie at the address of another by now.
   */
  onPushed(batch: Pushed): void {
    const { verifier } = this.#options
    const { runs, zeroRuns, hashes, payload } = batch
    if (hashes !== undefined) verifier?.checkHashes(runs, hashes)
    verifier?.checkZeros(zeroRuns)
    this.#pushBegan = true
    this.#pushed += batch.installed
    const workload = this.#spaces[0]
    if (workload === undefined) return
    if (workload.gate !== null) noteInstalled(workload, workload.gate, batch)
    for (const page of batch.lost) this.#lost.addRange(page, 1)
    if (batch.lost.length > 0) this.#lookAgain(workload)
    if (batch.isClosed && isGone(workload)) workload.lazy.clear()
    // Pages that have moved, and children: nobody else knows where they go.
    if (payload !== undefined) this.#pushed += this.#install(batch, payload)
    this.#checkDrained()
  }

  /** Installs wherever these source pages are still waited for; the number of pages that were. */
  #install(frame: { runs: Float64Array; zeroRuns: Float64Array }, payload: Uint8Array): number {
    let installed = 0
    // Children that are forked while we install come last and take part.
    for (let s = 0; s < this.#spaces.length; s++) {
      const space = this.#spaces[s]
      let at = 0
      for (let r = 0; r < frame.runs.length; r += 2) {
        const nr = frame.runs[r + 1]
        installed += this.#installRun(space, frame.runs[r], nr, payload.subarray(at, at + nr * pageBytes))
        at += nr * pageBytes
      }
      for (let r = 0; r < frame.zeroRuns.length; r += 2) {
        installed += this.#installRun(space, frame.zeroRuns[r], frame.zeroRuns[r + 1], null)
      }
    }
    return installed
  }

  #installRun(space: Space, source: number, nr: number, data: Uint8Array | null): number {
    let installed = 0
    let waitsSince: number | null = null
    const waitAndRead = (): void => {
      waitsSince ??= performance.now()
      this.#standstill.beginAfter(waitsSince)
      this.#readEvents(space)
    }
    for (;;) {
      // Looked up anew after every event: what was waiting may have been discarded or moved.
      if (!this.#settle(space)) {
        waitAndRead()
        continue
      }
      const waiting = space.lazy.sourceRunsPendingFor(Float64Array.of(source, nr))
      const next = waiting[0]
      if (next === undefined) return installed
      const [current, from, length] = next
      const table = Float64Array.of(current, length)
      const bytes = data?.subarray((from - source) * pageBytes, (from - source + length) * pageBytes)
      const outcome =
        bytes === undefined
          ? uffd.zeroRuns(space.uffd, table, 1, true)
          : uffd.installRuns(space.uffd, -1, table, 1, bytes, 'keep', true)
      if (outcome.pages > 0) {
        space.lazy.installed(Float64Array.of(current, outcome.pages))
        installed += outcome.pages
        waitsSince = null
      }
      switch (outcome.state) {
        case 'done':
          break
        case 'again':
          waitAndRead()
          break
        case 'no-range':
          // Unmapped, or about to be said to have moved.
          if (!isQuiet(space)) {
            waitAndRead()
            break
          }
          space.lazy.unmap(current + outcome.pages, 1)
          wakeRange(space, addressOf(current + outcome.pages), BigInt(pageBytes))
          break
        case 'gone':
          space.lazy.clear()
          break
      }
    }
  }

  /** In no area, and no event that was under way then has said so: nobody can fault there any more. */
  #noteLost(workload: Space): void {
    if (!isQuiet(workload)) {
      this.#lookAgain(workload)
      return
    }
    this.#lost.forEachRun((first, nr) => {
      workload.gate?.forEachOpen(first, nr, (page, length) => {
        workload.lazy.unmap(page, length)
        wakeRange(workload, addressOf(page), addressOf(length))
      })
    })
    this.#lost.clear()
  }

  #checkIdentity(frame: { asId: number; round: number }): void {
    if (frame.asId !== this.#options.asId || frame.round !== this.#options.round) {
      throw new WireError(
        'OUT_OF_ORDER',
        `address space ${frame.asId}, round ${frame.round} is not being received`,
      )
    }
  }

  /** Pages that are still to come, over all address spaces. */
  get pendingPages(): number {
    return this.#spaces.reduce((sum, space) => sum + space.lazy.pendingCount, 0)
  }

  #checkDrained(): void {
    const pending = this.pendingPages
    const now = performance.now()
    if (now - this.#lastProgressAt > progressMs || pending === 0) {
      this.#lastProgressAt = now
      this.#options.onProgress(pending, this.#faults, this.#pushed)
    }
    // Children that have everything, or have ended, leave at once: the keeper's room for names is small.
    for (const child of this.#spaces.slice(1).filter(({ lazy }) => lazy.isDrained)) {
      this.#spaces.splice(this.#spaces.indexOf(child), 1)
      releaseSpace(this.#options.keeper, child)
    }
    if (pending > 0) return
    this.#drainMs = now - this.#began
    this.#done()
  }

  /** Ends user-space paging. Until then faults must be served, so this comes last. */
  release(): void {
    // Children first: as long as the keeper has the workload's, a successor knows that there is something to do.
    for (const space of this.#spaces.splice(0).reverse()) releaseSpace(this.#options.keeper, space)
  }
}

/** What was found in no area may be about to be said to have moved: that stays as it is. */
function noteInstalled({ lazy }: Space, gate: InstallGate, { runs, zeroRuns, lost }: Pushed): void {
  const missing = new Set(lost)
  const note = (first: number, nr: number) => lazy.installed(Float64Array.of(first, nr))
  const noteAllBut = (first: number, nr: number) => {
    for (let page = first; page < first + nr; page++) if (!missing.has(page)) note(page, 1)
  }
  for (const table of [runs, zeroRuns]) {
    for (let r = 0; r < table.length; r += 2) {
      gate.forEachOpen(table[r], table[r + 1], missing.size === 0 ? note : noteAllBut)
    }
  }
}
