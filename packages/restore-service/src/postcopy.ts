import { closeSync } from 'node:fs'
import { performance } from 'node:perf_hooks'
import { type Logger, pageBytes, pageOf } from '@pageferry/base'
import { Poller, uffd } from '@pageferry/kernel'
import { LazyMap, type PageSet } from '@pageferry/memory'
import { type FaultsReport, faultsFromSamples } from '@pageferry/migration'
import type { Lane } from '@pageferry/service/worker'
import { faultPendingMax, type FrameOf, WireError } from '@pageferry/wire'
import type { Verifier } from './verifier.js'

/** One address space that still has lazy pages: the workload's, and those of children it forked. */
interface Space {
  uffd: number
  lazy: LazyMap
  poller: Poller | null
}

export interface PostcopyOptions {
  uffd: number
  asId: number
  round: number
  /** PE_LAZY pages of the final pagemap. */
  lazy: PageSet
  verifier: Verifier | null
  log: Logger
  /** A fork made a further userfaultfd; it must outlive this process before the child runs on. */
  holdUffd(name: string, fd: number): void
  dropUffd(name: string): void
  onProgress(pending: number, faults: number, installed: number): void
}

/** More samples than this are not kept; the count goes on. 8 bytes each. */
const maxSamples = 1_000_000
const progressMs = 200

/**
 * Post-copy on the destination. Everything about one userfaultfd happens on this one thread, which is the lock
 * that kernel-facts.md asks for: an event that was read is entered into the LazyMap before the next page is
 * installed, so a page that the workload discarded is never filled with its old content afterwards. The kernel
 * helps: while an event waits to be read, UFFDIO_COPY answers EAGAIN.
 */
export class Postcopy {
  readonly #options: PostcopyOptions
  readonly #spaces: Space[] = []
  /** Source pages asked for and not answered, with the time of the fault. */
  readonly #requested = new Map<number, number>()
  /** Faults beyond `faultPendingMax`, asked for when there is room. */
  readonly #backlog = new Set<number>()
  readonly #samples: number[] = []
  #faults = 0
  #maxUs = 0
  #pushed = 0
  #requestId = 0
  #faultLane: Lane | null = null
  #forks = 0
  #done: () => void = () => {}
  #failed: (error: unknown) => void = () => {}
  #lastProgressAt = 0
  readonly #began = performance.now()
  drainMs = 0

  constructor(options: PostcopyOptions) {
    this.#options = options
    this.#spaces.push({ uffd: options.uffd, lazy: new LazyMap(options.lazy.clone()), poller: null })
  }

  /** Serves until no page of any address space is lazy. */
  run(signal: AbortSignal): Promise<void> {
    return new Promise<void>((resolve, reject) => {
      this.#done = resolve
      this.#failed = reject
      signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true })
      this.#watch(this.#spaces[0])
      this.#checkDrained()
    }).finally(() => {
      for (const space of this.#spaces) space.poller?.close()
    })
  }

  get faults(): FaultsReport {
    const report = faultsFromSamples(this.#samples)
    return { ...report, count: this.#faults, maxUs: Math.max(report.maxUs, Math.round(this.#maxUs)) }
  }

  get pushedPages(): number {
    return this.#pushed
  }

  /** A new fault lane: what was asked for on the old one is asked for again. */
  attachFaultLane(lane: Lane): void {
    this.#faultLane = lane
    for (const page of this.#requested.keys()) this.#request(page)
  }

  /** The workload's process is gone; children go on. */
  processGone(): void {
    this.#spaces[0]?.lazy.clear()
    this.#checkDrained()
  }

  #watch(space: Space): void {
    space.poller = new Poller(space.uffd, (readable, error) => {
      if (error !== undefined || !readable) return
      try {
        this.#readEvents(space)
        this.#checkDrained()
      } catch (cause) {
        this.#failed(cause)
      }
    })
  }

  #readEvents(space: Space): void {
    const { lazy } = space
    for (const event of uffd.readEvents(space.uffd)) {
      switch (event.type) {
        case 'pagefault':
          this.#onFault(space, pageOf(event.address))
          break
        case 'remove':
          lazy.remove(pageOf(event.start), pageOf(event.end) - pageOf(event.start))
          break
        case 'unmap':
          lazy.unmap(pageOf(event.start), pageOf(event.end) - pageOf(event.start))
          break
        case 'remap':
          lazy.remap(pageOf(event.from), pageOf(event.to), pageOf(event.length))
          break
        case 'fork':
          this.#onFork(space, event.fd)
          break
      }
    }
  }

  #onFork(parent: Space, fd: number): void {
    const name = `uffd-fork-${++this.#forks}`
    this.#options.holdUffd(name, fd)
    const child: Space = { uffd: fd, lazy: parent.lazy.fork(), poller: null }
    this.#spaces.push(child)
    this.#watch(child)
  }

  #onFault(space: Space, page: number): void {
    const source = space.lazy.lookup(page)
    if (source === 'zero') {
      this.#zero(space, page)
      return
    }
    this.#faults++
    if (this.#requested.has(source)) return
    if (this.#requested.size >= faultPendingMax) this.#backlog.add(source)
    else {
      this.#requested.set(source, performance.now())
      this.#request(source)
    }
  }

  /** Stack growth, a grown mapping, a hole, or discarded memory. */
  #zero(space: Space, page: number): void {
    const table = Float64Array.of(page, 1)
    for (;;) {
      const { state } = uffd.zeroRuns(space.uffd, table, 1, true)
      if (state !== 'again') return
      this.#readEvents(space)
    }
  }

  #request(page: number): void {
    const { asId, round } = this.#options
    this.#requestId = (this.#requestId % 0xffff_ffff) + 1
    this.#faultLane?.send({ type: 'pageRequest', asId, round, requestId: this.#requestId, page, nrPages: 1 })
  }

  onReply(frame: FrameOf<'pageReply'>, payload: Uint8Array): void {
    this.#checkIdentity(frame)
    this.#install(frame, payload)
    for (let page = frame.page; page < frame.page + frame.nrPages; page++) {
      const began = this.#requested.get(page)
      if (began === undefined) continue
      this.#requested.delete(page)
      const us = (performance.now() - began) * 1000
      this.#maxUs = Math.max(this.#maxUs, us)
      if (this.#samples.length < maxSamples) this.#samples.push(us)
    }
    this.#askBacklog()
    this.#checkDrained()
  }

  #askBacklog(): void {
    for (const page of this.#backlog) {
      if (this.#requested.size >= faultPendingMax) return
      this.#backlog.delete(page)
      this.#requested.set(page, performance.now())
      this.#request(page)
    }
  }

  onBatch(lane: Lane, frame: FrameOf<'pageBatch'>, payload: Uint8Array): void {
    this.#checkIdentity(frame)
    this.#pushed += this.#install(frame, payload)
    lane.send({ type: 'batchAck', sequence: frame.sequence, bytes: payload.length })
    this.#checkDrained()
  }

  /** Installs wherever these source pages are still waited for; the number of pages that were. */
  #install(frame: { runs: Float64Array; zeroRuns: Float64Array }, payload: Uint8Array): number {
    const { verifier } = this.#options
    verifier?.checkPages(frame.runs, payload)
    verifier?.checkZeros(frame.zeroRuns)
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
    for (;;) {
      // Looked up anew after every event: what was waiting may have been discarded or moved.
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
      }
      switch (outcome.state) {
        case 'done':
          break
        case 'again':
          this.#readEvents(space)
          break
        case 'no-range':
          // Unmapped, and its event was read or is about to be; nobody can fault here any more.
          space.lazy.unmap(current + outcome.pages, 1)
          break
        case 'gone':
          space.lazy.clear()
          break
      }
    }
  }

  #checkIdentity(frame: { asId: number; round: number }): void {
    if (frame.asId !== this.#options.asId || frame.round !== this.#options.round) {
      throw new WireError('OUT_OF_ORDER', `address space ${frame.asId}, round ${frame.round} is not being received`)
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
    if (pending > 0) return
    this.drainMs = now - this.#began
    this.#done()
  }

  /**
   * Nothing is lazy any more: the memory becomes ordinary memory. Closing the last descriptor unregisters it
   * and wakes whoever waits; what is not there by then reads as zeros, which is right for every page that is
   * left. Until then faults must be served, so this comes last.
   */
  release(): void {
    for (const [i, space] of this.#spaces.entries()) {
      space.poller?.close()
      space.poller = null
      if (i > 0) this.#options.dropUffd(`uffd-fork-${i}`)
      closeSync(space.uffd)
    }
    this.#spaces.length = 0
  }
}

