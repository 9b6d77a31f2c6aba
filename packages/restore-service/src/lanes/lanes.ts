import { setTimeout as sleep } from 'node:timers/promises'
import { type ErrorInfo, type Logger, PageferryError } from '@pageferry/base'
import { errorToFrame, type Frame, type Lane as LaneKind } from '@pageferry/wire'
import type { Lane } from '@pageferry/wire/sockets'
import { type Dialled, type DialOptions, dial } from '@pageferry/wire/sockets'
import { BulkLane, BulkThreads } from './bulk-lane.js'
import type { Pushed, Target } from './bulk-messages.js'
import { FaultLane } from './fault-lane.js'

/** Pause before a lost lane is dialled again, doubled after each failure. */
const redialMs = 200
const maxRedialMs = 5_000
/** How long a closed control lane may take: the source then has had the time to ask for what it missed. */
const lingerMs = 10_000
/** Attempts to reach a source that has lost us: its next worker is there within a second or two, on a busy host five. */
const farewells = 8
const farewellPauseMs = 800

/** What the source says of all lanes when the control lane is dialled. A successor must know it. */
export type Welcomed = Pick<Dialled, 'nrBulkLanes' | 'faultPort'>

/** Who owns the lanes hears what comes on them, and what becomes of them. */
export interface LaneEvents {
  /** Of the control lane. May throw: the lane is closed with the error's code. */
  onFrame(frame: Frame, payload: Uint8Array): void
  /** A bulk lane has installed a batch of a round. May throw, likewise. */
  onInstalled(index: number, round: number, pages: number): void
  /** A bulk lane has installed what it could of a batch of the lazy phase. May throw, likewise. */
  onPushed(lane: BulkLane, batch: Pushed): void
  onLost(kind: LaneKind, index: number): void
  onRedialled(kind: LaneKind, index: number): void
  /** The source was reached and does not know this migration. Dialling goes on. */
  onPeerUnknown(): void
}

/**
 * The connections of one migration, all of which the destination dials. They carry frames and know no meaning. Bulk lanes
 * live in threads of their own: what comes on the others, a fault's page first of all, never waits for a batch.
 */
export class DestinationLanes {
  readonly #source: Pick<DialOptions, 'url' | 'migrationId' | 'token'>
  readonly #log: Logger
  readonly #events: LaneEvents
  readonly #redialling = new Set<string>()
  #nrBulkLanes: number
  #faultPort: number | undefined
  readonly #bulk: BulkLane[] = []
  readonly #bulkThreads = new BulkThreads()
  #target: Target | null = null
  #control: Lane | null = null
  readonly fault = new FaultLane()
  #over = false
  #wasConnected = false

  /** @param welcomed what the source said to a worker before this one */
  constructor(
    source: Pick<DialOptions, 'url' | 'migrationId' | 'token'>,
    { nrBulkLanes = 1, faultPort }: Partial<Welcomed>,
    log: Logger,
    events: LaneEvents,
  ) {
    this.#source = source
    this.#nrBulkLanes = nrBulkLanes
    this.#faultPort = faultPort
    this.#log = log
    this.#events = events
  }

  /** The control lane is up. */
  get isConnected(): boolean {
    return this.#control !== null
  }

  /** On the control lane. Without one the frame is dropped: the machine says its word again on `reconnected`. */
  send(frame: Frame): void {
    this.#control?.send(frame)
  }

  async connectControl(): Promise<Welcomed> {
    const { nrBulkLanes, faultPort } = await this.#dialHere('control', false)
    this.#nrBulkLanes = nrBulkLanes
    return { nrBulkLanes, faultPort }
  }

  /** The other lanes, once the control lane is up. */
  async connectPages(): Promise<void> {
    await this.#dial('fault', 0, false)
    for (let index = 0; index < this.#nrBulkLanes; index++) await this.#dial('bulk', index, false)
  }

  /**
   * Dials in the background until the lane is up or `close` was called; a second call for the same lane does nothing.
   * Without an index: every lane of the kind.
   */
  redial(kind: LaneKind, index?: number): void {
    if (kind !== 'bulk' || index !== undefined) void this.#redial(kind, index ?? 0)
    else for (let each = 0; each < this.#nrBulkLanes; each++) void this.#redial(kind, each)
  }

  async #redial(kind: LaneKind, index: number): Promise<void> {
    const key = `${kind}:${index}`
    if (this.#redialling.has(key)) return
    this.#redialling.add(key)
    for (let pauseMs = redialMs; !this.#over; pauseMs = Math.min(2 * pauseMs, maxRedialMs)) {
      await sleep(pauseMs)
      if (this.#over) break
      try {
        await this.#dial(kind, index, true)
        this.#events.onRedialled(kind, index)
        break
      } catch (error) {
        this.#log.debug({ error: (error as Error).message }, `${kind} lane is still down`)
        if (error instanceof PageferryError && error.code === 'NOT_FOUND') this.#events.onPeerUnknown()
      }
    }
    this.#redialling.delete(key)
  }

  async #dial(kind: LaneKind, index: number, resume: boolean): Promise<void> {
    if (kind === 'bulk') await this.#bulkLane(index).dial({ ...this.#source, kind, index, resume })
    else await this.#dialHere(kind, resume)
  }

  /** A lane that lives on this thread. */
  async #dialHere(kind: 'control' | 'fault', resume: boolean): Promise<Welcomed> {
    const url = kind === 'fault' ? this.#faultUrl : this.#source.url
    const { lane, ...welcomed } = await dial({ ...this.#source, url, kind, index: 0, resume })
    if (kind === 'control') {
      this.#control = lane
      this.#wasConnected = true
      // Of this connection: a new worker of the source may listen elsewhere.
      this.#faultPort = welcomed.faultPort
    } else this.fault.attach(lane)
    lane.open({
      onFrame: (frame, payload) => {
        if (kind === 'fault') this.fault.onFrame(frame, payload)
        else this.#events.onFrame(frame, payload)
      },
      onLost: (error) => {
        if (this.#control === lane) this.#control = null
        this.#onLost(kind, 0, error)
      },
    })
    return welcomed
  }

  get #faultUrl(): string {
    if (this.#faultPort === undefined) {
      throw new PageferryError('PEER_UNREACHABLE', 'the source has not said yet where its fault lane is')
    }
    const url = new URL(this.#source.url)
    url.port = String(this.#faultPort)
    return url.href
  }

  #bulkLane(index: number): BulkLane {
    this.#bulk[index] ??= this.#startBulkLane(index)
    return this.#bulk[index]
  }

  #startBulkLane(index: number): BulkLane {
    const lane = new BulkLane(index, this.#bulkThreads, {
      onInstalled: (round, pages) => orRefuse(() => this.#events.onInstalled(index, round, pages)),
      onPushed: (batch) => orRefuse(() => this.#events.onPushed(lane, batch)),
      onLost: (error) => this.#onLost('bulk', index, error),
    })
    const orRefuse = (action: () => void): void => {
      try {
        action()
      } catch (error) {
        lane.refuse(error)
      }
    }
    if (this.#target !== null) lane.open(this.#target)
    return lane
  }

  #onLost(kind: LaneKind, index: number, error: Error): void {
    this.#log.info(error.message)
    this.#events.onLost(kind, index)
  }

  /** Where the batches of all bulk lanes go from here on. */
  openTarget(target: Target): void {
    this.#target = target
    for (const lane of this.#bulk) lane?.open(target)
  }

  /** Batches of the bulk lanes wait for the next target. */
  closeTarget(): void {
    this.#target = null
    for (const lane of this.#bulk) lane?.close()
  }

  /**
   * Says `failed` on a lane that is dialled for it. A source that was never dialled waits for us, one whose worker was
   * killed in the freeze listens again a moment later, in case that we hold a complete copy. Not more than a courtesy.
   */
  async sayFailed(error: ErrorInfo): Promise<void> {
    for (let attempt = 0; attempt < farewells; attempt++) {
      try {
        const { lane } = await dial({
          ...this.#source,
          kind: 'control',
          index: 0,
          resume: this.#wasConnected,
        })
        lane.open({ onFrame: () => {}, onLost: () => {} })
        lane.send(errorToFrame('failed', error))
        lane.close()
        await lane.closed()
        return
      } catch {
        await sleep(farewellPauseMs)
      }
    }
  }

  /** Nothing is dialled any more. Resolves when the source has closed the control lane too, or has had its time. */
  async close(): Promise<void> {
    this.#over = true
    const control = this.#control
    if (control === null) return
    control.close()
    await Promise.race([control.closed(), sleep(lingerMs)])
  }
}
