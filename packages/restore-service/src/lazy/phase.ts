import { performance } from 'node:perf_hooks'
import type { Logger } from '@pageferry/base'
import { type DestinationReport, faultsFromSamples } from '@pageferry/migration'
import { type FrameOf, WireError } from '@pageferry/wire'
import type { Pushed } from '../lanes/bulk-messages.js'
import type { FaultReceiver } from '../lanes/fault-lane.js'
import type { RestoredProcess } from '../process.js'
import type { Verifier } from '../verify/verifier.js'
import type { Family } from './adopt.js'
import type { RequestLane } from './demand.js'
import { MlockedMremap } from './mlocked-mremap.js'
import { Pager } from './pager.js'
import { Standstill } from './standstill.js'

type LazyVerifier = Pick<Verifier, 'lazyLog' | 'noteLazy' | 'noteUnlogged'>

/** One address space of the workload at the resume. */
export interface LazyMember {
  /** The address space itself and, after a takeover, the children that it has forked since. */
  spaces: Family
  /** The number that pushed batches carry. */
  round: number
  /** Hashes pages before they are installed. */
  verifier: LazyVerifier | null
  process: Pick<RestoredProcess, 'pid' | 'exit'>
}

export interface LazyPhaseOptions {
  /** The address spaces by as_id. */
  members: ReadonlyMap<number, LazyMember>
  /** Another worker served them before: part of the pages that the source has sent is lost. */
  takenOver: boolean
  /** Request pages that will probably be touched next. */
  prefetch: boolean
  log: Logger
  lane: RequestLane
  /** Totals, over all address spaces: pages still to come, faults and pushed pages so far. */
  onProgress(pending: number, faults: number, pushed: number): void
  /** For an injected fault, see Pager. */
  onForkRead(): void
  /** Holds the workload still for short moments, see Standstill. */
  freezer: Pick<RestoredProcess, 'holdStill' | 'thaw'>
}

const progressMs = 200
/** After this long without a page the destination pulls the rest itself. */
const stallMs = 500

/**
 * The lazy phase on the destination, from the resume until no page is lazy. Each address space of the workload has a
 * Pager, which serves its events and faults and installs its pages. This class routes the lanes' frames and detects the
 * end.
 *
 * The LazyMaps alone decide which pages are still to come, and they outlive this process (journal.ts). The source's own
 * record of sent pages only affects the order. Pages that got lost, in a broken lane or in a killed worker, are pulled.
 */
export class LazyPhase implements FaultReceiver {
  readonly #options: LazyPhaseOptions
  readonly #pagers = new Map<number, Pager>()
  readonly #standstill: Standstill
  readonly #began = performance.now()
  #drainMs = 0
  /** A source that has not begun to push was told to wait (pushDelayMs), so none of its pages can be lost. */
  #pushBegan: boolean
  #lastPending = -1
  #lastProgressAt = 0
  #drained: () => void = () => {}
  #failed: (error: unknown) => void = () => {}

  constructor(options: LazyPhaseOptions) {
    this.#options = options
    this.#pushBegan = options.takenOver
    this.#standstill = new Standstill(options.freezer)
    if (options.takenOver) this.#standstill.end()
    const { prefetch, log, lane, onForkRead } = options
    for (const [asId, { spaces, round, process }] of options.members) {
      const pager = new Pager(spaces, {
        ...{ asId, round, prefetch, log, lane, onForkRead },
        standstill: this.#standstill,
        mlockedMremap: new MlockedMremap(process, log),
        run: (action) => this.#run(action),
      })
      this.#pagers.set(asId, pager)
    }
  }

  /** Serves until no page of any address space is lazy. */
  async run(signal: AbortSignal): Promise<void> {
    const drained = new Promise<void>((resolve, reject) => {
      this.#drained = resolve
      this.#failed = reject
      signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true })
    })
    const stalls = setInterval(() => this.#guard(() => this.#checkStalled()), stallMs)
    try {
      this.#run(() => this.#start())
      await drained
    } finally {
      clearInterval(stalls)
      if (this.#standstill.isHeld) this.#standstill.end()
      for (const pager of this.#pagers.values()) pager.stop()
    }
  }

  #start(): void {
    for (const pager of this.#pagers.values()) pager.start()
    if (this.#options.takenOver) this.#pull()
  }

  /** Runs an action that may install the last page. */
  #run(action: () => void): void {
    this.#guard(() => {
      action()
      this.#checkDrained()
    })
  }

  /** Runs a callback of the kernel or a timer: an error ends the phase. */
  #guard(action: () => void): void {
    try {
      action()
    } catch (cause) {
      this.#failed(cause)
    }
  }

  /** The fault lane is up, for the first time or again. */
  onUp(): void {
    for (const pager of this.#pagers.values()) pager.demand.askAgain()
  }

  /** @throws WireError: the frame's address space is unknown, or its round is another one */
  onReply(frame: FrameOf<'pageReply'>, payload: Uint8Array): void {
    const pager = this.#pagerOf(frame)
    this.#verifierOf(frame.asId)?.noteLazy(frame.runs, payload, frame.zeroRuns)
    pager.demand.onReply(frame, payload)
    this.#checkDrained()
  }

  /** A bulk lane has installed what it could of a batch. */
  onPushed(batch: Pushed): void {
    if (batch.isUnlogged) this.#verifierOf(batch.asId)?.noteUnlogged([batch.runs, batch.zeroRuns])
    this.#pushBegan = true
    this.#pagers.get(batch.asId)?.onPushed(batch)
    this.#checkDrained()
  }

  #pagerOf({ asId, round }: { asId: number; round: number }): Pager {
    const pager = this.#pagers.get(asId)
    if (pager === undefined) throw new WireError('OUTSIDE_PROCESS', `address space ${asId} is unknown`)
    if (round !== this.#options.members.get(asId)?.round) {
      throw new WireError('OUT_OF_ORDER', `round ${round} of address space ${asId} is not being received`)
    }
    return pager
  }

  #verifierOf(asId: number): LazyVerifier | null {
    return this.#options.members.get(asId)?.verifier ?? null
  }

  /** A process of the workload is gone. Children that it has forked go on. */
  processGone(asId: number): void {
    this.#pagers.get(asId)?.processGone()
    this.#checkDrained()
  }

  #checkStalled(): void {
    const pending = this.pendingPages
    if (pending === this.#lastPending && pending > 0 && this.#pushBegan) this.#pull()
    this.#lastPending = pending
  }

  #pull(): void {
    for (const pager of this.#pagers.values()) pager.demand.pull()
  }

  #checkDrained(): void {
    const pending = this.pendingPages
    const now = performance.now()
    if (now - this.#lastProgressAt > progressMs || pending === 0) {
      this.#lastProgressAt = now
      this.#options.onProgress(pending, this.#faults, this.#pushedPages)
    }
    for (const pager of this.#pagers.values()) pager.releaseDrainedChildren()
    if (pending > 0) return
    this.#drainMs = now - this.#began
    this.#drained()
  }

  /** Ends user-space paging. Until then faults must be served, so this comes last. */
  release(): void {
    for (const pager of this.#pagers.values()) pager.release()
  }

  #sum(count: (pager: Pager) => number): number {
    let sum = 0
    for (const pager of this.#pagers.values()) sum += count(pager)
    return sum
  }

  /** Pages that are still to come, over all address spaces. */
  get pendingPages(): number {
    return this.#sum((pager) => pager.pendingPages)
  }

  get #faults(): number {
    return this.#sum(({ demand }) => demand.faults)
  }

  get #pushedPages(): number {
    return this.#sum((pager) => pager.pushedPages)
  }

  get report(): Omit<DestinationReport, 'verify' | 'blackout' | 'notMoved'> {
    const demands = [...this.#pagers.values()].map(({ demand }) => demand)
    const kept = faultsFromSamples(demands.flatMap(({ samples }) => samples))
    const maxUs = Math.max(kept.maxUs, ...demands.map((demand) => Math.round(demand.maxUs)))
    return {
      faults: { ...kept, count: this.#faults, maxUs },
      pushedPages: this.#pushedPages,
      prefetchedPages: this.#sum(({ demand }) => demand.prefetchedPages),
      usefulPrefetchedPages: this.#sum(({ demand }) => demand.usefulPrefetchedPages),
      drainMs: this.#drainMs,
    }
  }
}
