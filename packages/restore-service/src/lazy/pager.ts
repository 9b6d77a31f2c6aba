import { performance } from 'node:perf_hooks'
import { type Logger, pageBytes } from '@pageferry/base'
import { type MapEvent, PageSet } from '@pageferry/pages'
import type { Pushed } from '../lanes/bulk-messages.js'
import type { AddressSpace, Fault } from './address-space.js'
import type { Family } from './adopt.js'
import { Demand, type RequestLane } from './demand.js'
import type { MlockedMremap } from './mlocked-mremap.js'
import type { Standstill } from './standstill.js'

/** From this number of address spaces on, each fork removes those that have ended. */
const manySpaces = 8

export interface PagerOptions {
  asId: number
  round: number
  prefetch: boolean
  log: Logger
  lane: RequestLane
  standstill: Standstill
  mlockedMremap: MlockedMremap
  /** A fork's event was read, and only our table has its userfaultfd. For an injected fault. */
  onForkRead(): void
  /** Runs an action that a kernel event or a timer has begun; an error that it throws ends the lazy phase. */
  run(action: () => void): void
}

/**
 * Serves events and faults of one address space of the workload, and of the children that it has forked since the
 * resume. All of them take pages of the same address space of the source.
 *
 * Events and faults are served on this one thread. It installs a page only after all events that were read are settled.
 * So a page that the workload has discarded is never filled with its old content. The bulk lanes install from threads
 * of their own, through a gate that closes for all that an event names (InstallGate). The kernel helps: while an event
 * waits to be read, UFFDIO_COPY answers EAGAIN.
 */
export class Pager {
  readonly demand: Demand
  readonly #options: PagerOptions
  /** The workload's own first. */
  readonly #spaces: Family
  /** Source pages that the workload discarded before they came. */
  readonly #discarded = new PageSet()
  /** Address spaces that were not quiet and will be looked at again soon. */
  readonly #looking = new Set<AddressSpace>()
  #pushedPages = 0

  constructor(spaces: Family, options: PagerOptions) {
    this.#spaces = spaces
    this.#options = options
    const { asId, round, prefetch, lane } = options
    this.demand = new Demand({ asId, round }, lane, prefetch, {
      install: (frame, payload) => this.#install(frame, payload),
      isPending: (source) => this.#isPending(source),
      pendingSourcePages: () => this.#pendingSourcePages(),
    })
  }

  start(): void {
    for (const space of this.#spaces) {
      this.#watch(space)
      this.#lookAgain(space)
    }
  }

  stop(): void {
    for (const space of this.#spaces) space.unwatch()
  }

  /** The workload's process is gone; children go on. */
  processGone(): void {
    this.#spaces[0]?.lazy.clear()
  }

  #watch(space: AddressSpace): void {
    space.watch(() => this.#options.run(() => this.#serve(space)))
  }

  /**
   * Handles the changes of the address space first, in order, then the faults. Serving a fault may have to read more
   * events, and those come after all of these.
   */
  #serve(space: AddressSpace): void {
    const faults = space.read((fd) => this.#onFork(space, fd))
    if (!this.#settle(space)) {
      space.defer(faults)
      this.#lookAgain(space)
      return
    }
    // A fault that still cannot be served is deferred anew.
    for (const fault of [...space.takeDeferred(), ...faults]) this.#onFault(space, fault)
    if (!space.dropLost()) this.#lookAgain(space)
    if (!this.#looking.has(space)) space.noteServed()
    if (space.gate?.takeStarving() === true) this.#options.standstill.beginAfter(Number.NEGATIVE_INFINITY)
  }

  #settle(space: AddressSpace): boolean {
    if (!space.settle((event) => this.#noteDiscard(space, event))) return false
    if (!this.#discarded.isEmpty) {
      this.demand.discard(this.#discarded)
      this.#discarded.clear()
    }
    return true
  }

  /** Notes discarded pages for the source, unless there are children: an earlier child may still need them. */
  #noteDiscard({ lazy }: AddressSpace, event: MapEvent): void {
    if (this.#spaces.length > 1 || event.type === 'remap') return
    lazy.forEachPendingIn(event.first, event.nr, (source, nr) => this.#discarded.addRange(source, nr))
  }

  /** Schedules another look: a thread that goes on after its change raises no event. */
  #lookAgain(space: AddressSpace): void {
    const { standstill, mlockedMremap, run } = this.#options
    standstill.beginAfter(space.noteWaiting(performance.now()))
    if (space === this.#spaces[0]) mlockedMremap.letGo(space)
    if (this.#looking.has(space)) return
    this.#looking.add(space)
    setImmediate(() => {
      this.#looking.delete(space)
      if (this.#spaces.includes(space)) run(() => this.#serve(space))
    })
  }

  #onFork(parent: AddressSpace, fd: number): void {
    this.#options.onForkRead()
    const child = parent.fork(fd, this.#options.log)
    this.#spaces.push(child)
    this.#watch(child)
    if (child.unsettled.length > 0) this.#lookAgain(child)
    if (this.#spaces.length < manySpaces) return
    for (const space of this.#spaces) if (space !== child && space.isGone) space.lazy.clear()
  }

  #onFault(space: AddressSpace, fault: Fault): void {
    const source = space.lazy.lookup(fault.page)
    if (source !== 'zero') this.demand.onFault(space.lazy, fault, source)
    else if (!space.zero(fault.page)) {
      space.defer([fault])
      this.#lookAgain(space)
    }
  }

  /** A bulk lane has installed what it could of a batch. */
  onPushed(batch: Pushed): void {
    const workload = this.#spaces[0]
    const { payload } = batch
    this.#pushedPages += batch.installed
    // The batch is late: everything was released.
    if (workload === undefined) return
    workload.notePushed(batch)
    if (batch.lost.length > 0) this.#lookAgain(workload)
    if (batch.isClosed && workload.isGone) workload.lazy.clear()
    // Only this thread knows where pages that have moved, and pages of children, go.
    if (payload !== undefined) this.#pushedPages += this.#install(batch, payload)
  }

  /** Installs the pages wherever they are lazy; returns how many were. */
  #install(frame: Pick<Pushed, 'runs' | 'zeroRuns'>, payload: Uint8Array): number {
    let installed = 0
    // Children that are forked during the installation are appended and take part.
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

  #installRun(space: AddressSpace, source: number, nr: number, data: Uint8Array | null): number {
    let installed = 0
    let waitsSince: number | null = null
    for (;;) {
      // Look up anew after every event: the missing page may have been discarded or moved.
      if (this.#settle(space)) {
        const { pages, isChanging } = space.install(source, nr, data)
        installed += pages
        if (!isChanging) return installed
        if (pages > 0) waitsSince = null
      }
      waitsSince ??= performance.now()
      this.#options.standstill.beginAfter(waitsSince)
      this.#serve(space)
    }
  }

  #isPending(source: number): boolean {
    const page = Float64Array.of(source, 1)
    return this.#spaces.some(({ lazy }) => lazy.sourceRunsPendingFor(page).length > 0)
  }

  #pendingSourcePages(): PageSet {
    const pages = new PageSet()
    for (const { lazy } of this.#spaces) pages.union(lazy.pendingSourcePages())
    return pages
  }

  /** Pages that are still to come, over all address spaces of this pager. */
  get pendingPages(): number {
    return this.#spaces.reduce((sum, space) => sum + space.lazy.pendingCount, 0)
  }

  /** Pushed pages that were missing. */
  get pushedPages(): number {
    return this.#pushedPages
  }

  /** Releases children that have all pages, or have ended, at once: the keeper's room for names is small. */
  releaseDrainedChildren(): void {
    for (const child of this.#spaces.slice(1).filter(({ lazy }) => lazy.isDrained)) {
      this.#spaces.splice(this.#spaces.indexOf(child), 1)
      child.release()
    }
  }

  /** Ends user-space paging. Until then faults must be served, so this comes last. */
  release(): void {
    // Children first: while the keeper has the workload's, a successor knows that there is work left.
    for (const space of this.#spaces.splice(0).reverse()) space.release()
  }
}
