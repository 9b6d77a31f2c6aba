import { setTimeout as sleep } from 'node:timers/promises'
import { type ErrorInfo, type Logger, PageferryError } from '@pageferry/base'
import { errorToFrame, type Frame, type Lane as LaneKind } from '@pageferry/wire'
import type { Lane } from '@pageferry/wire/sockets'
import { type Dialled, type DialOptions, dial } from '@pageferry/wire/sockets'
import { BulkLanes } from './bulk-lanes.js'
import { FaultLane } from './fault-lane.js'

/** Pause before a lost lane is dialled again, doubled after each failure. */
const redialMs = 200
const maxRedialMs = 5_000
/** How long closing the control lane may take. The source can ask for messages that it missed until then. */
const lingerMs = 10_000
/**
 * Attempts to reach a source that has lost us. Its next worker is there within two seconds, on a busy host within five.
 */
const farewells = 8
const farewellPauseMs = 800

/** The source's answer when the control lane is dialled; it concerns all lanes. A successor must know it. */
export type Welcomed = Pick<Dialled, 'nrBulkLanes' | 'faultPort'>

/** Events for the worker. Pages do not pass through it: `fault` and `bulk` have receivers of their own. */
export interface LaneEvents {
  /** A frame on the control lane. May throw: the lane is closed with the error's code. */
  onFrame(frame: Frame, payload: Uint8Array): void
  onLost(kind: LaneKind, index: number): void
  onRedialled(kind: LaneKind, index: number): void
  /** The source was reached and does not know this migration. Dialling goes on. */
  onPeerUnknown(): void
}

/**
 * The connections of one migration. The destination dials them all. Bulk lanes live in threads of their own, so frames
 * of the other lanes never wait for a batch; the page of a fault matters most.
 */
export class DestinationLanes {
  readonly #source: Pick<DialOptions, 'url' | 'migrationId' | 'token'>
  readonly #log: Logger
  readonly #events: LaneEvents
  readonly #redialling = new Set<string>()
  #nrBulkLanes: number
  #faultPort: number | undefined
  #control: Lane | null = null
  readonly fault = new FaultLane()
  readonly bulk = new BulkLanes((index, error) => this.#onLost('bulk', index, error))
  #over = false
  #wasConnected = false

  /** @param welcomed the source's answer to a worker before this one */
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

  /** Whether the control lane is up. */
  get isConnected(): boolean {
    return this.#control !== null
  }

  /** Sends on the control lane. Without one the frame is dropped: the machine repeats its messages on `reconnected`. */
  send(frame: Frame): void {
    this.#control?.send(frame)
  }

  async connectControl(): Promise<Welcomed> {
    const { nrBulkLanes, faultPort } = await this.#dialHere('control', false)
    this.#nrBulkLanes = nrBulkLanes
    return { nrBulkLanes, faultPort }
  }

  /** Dials the other lanes, once the control lane is up. */
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
    if (kind === 'bulk') await this.bulk.dial({ ...this.#source, kind, index, resume })
    else await this.#dialHere(kind, resume)
  }

  /** Dials a lane that lives on this thread. */
  async #dialHere(kind: 'control' | 'fault', resume: boolean): Promise<Welcomed> {
    const url = kind === 'fault' ? this.#faultUrl : this.#source.url
    const { lane, ...welcomed } = await dial({ ...this.#source, url, kind, index: 0, resume })
    if (kind === 'control') {
      this.#control = lane
      this.#wasConnected = true
      // The port belongs to this connection: a new worker of the source may listen elsewhere.
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
      throw new PageferryError('PEER_UNREACHABLE', 'the source has not announced its fault lane yet')
    }
    const url = new URL(this.#source.url)
    url.port = String(this.#faultPort)
    return url.href
  }

  #onLost(kind: LaneKind, index: number, error: Error): void {
    this.#log.info(error.message)
    this.#events.onLost(kind, index)
  }

  /**
   * Sends `failed` on a control lane that is dialled for it. A source that was never dialled waits for us. A source
   * whose worker was killed in the freeze soon listens again, because we might hold a complete copy. This is only a
   * courtesy.
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

  /** Stops dialling. Resolves when the source has closed the control lane too, or after `lingerMs`. */
  async close(): Promise<void> {
    this.#over = true
    const control = this.#control
    if (control === null) return
    control.close()
    await Promise.race([control.closed(), sleep(lingerMs)])
  }
}
