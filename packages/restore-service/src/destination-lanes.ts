import { setTimeout as sleep } from 'node:timers/promises'
import { type ErrorInfo, type Logger, PageferryError } from '@pageferry/base'
import type { Lane } from '@pageferry/service/worker'
import { errorToFrame, type Frame, type Lane as LaneKind } from '@pageferry/wire'
import { type Dialled, type DialOptions, dial } from './dial.js'

/** Pause before a lost lane is dialled again, doubled after each failure. */
const redialMs = 200
const maxRedialMs = 5_000
/** How long a closed control lane may take: the source then has had the time to ask for what it missed. */
const lingerMs = 10_000
/** Attempts to reach a source that has lost us: its next worker is there within a second or two, on a busy host five. */
const farewells = 8
const farewellPauseMs = 800

/** Who owns the lanes hears what comes on them, and what becomes of them. */
export interface LaneEvents {
  /** May throw: the lane is closed with the error's code. */
  onFrame(lane: Lane, frame: Frame, payload: Uint8Array): void
  onLost(kind: LaneKind, index: number): void
  onRedialled(lane: Lane): void
  /** The source was reached and does not know this migration. Dialling goes on. */
  onPeerUnknown(): void
}

/** The connections of one migration, all of which the destination dials. They carry frames and know no meaning. */
export class DestinationLanes {
  readonly #target: Pick<DialOptions, 'url' | 'migrationId' | 'token'>
  readonly #log: Logger
  readonly #events: LaneEvents
  readonly #redialling = new Set<string>()
  #nrBulkLanes: number
  #control: Lane | null = null
  #fault: Lane | null = null
  #over = false
  #wasConnected = false

  /** @param nrBulkLanes what the source said to a worker before this one; 1 until somebody was told */
  constructor(
    target: Pick<DialOptions, 'url' | 'migrationId' | 'token'>,
    nrBulkLanes: number,
    log: Logger,
    events: LaneEvents,
  ) {
    this.#target = target
    this.#nrBulkLanes = nrBulkLanes
    this.#log = log
    this.#events = events
  }

  /** The control lane is up. */
  get isConnected(): boolean {
    return this.#control !== null
  }

  /** The latest one; it may be down. Null until it was up for the first time. */
  get fault(): Lane | null {
    return this.#fault
  }

  /** On the control lane. Without one the frame is dropped: the machine says its word again on `reconnected`. */
  send(frame: Frame): void {
    this.#control?.send(frame)
  }

  /** Answers the number of bulk lanes that the source wants. */
  async connectControl(): Promise<number> {
    const { nrBulkLanes } = await this.#dial('control', 0, false)
    this.#nrBulkLanes = nrBulkLanes
    return nrBulkLanes
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
        const { lane } = await this.#dial(kind, index, true)
        this.#events.onRedialled(lane)
        break
      } catch (error) {
        this.#log.debug({ error: (error as Error).message }, `${kind} lane is still down`)
        if (error instanceof PageferryError && error.code === 'NOT_FOUND') this.#events.onPeerUnknown()
      }
    }
    this.#redialling.delete(key)
  }

  async #dial(kind: LaneKind, index: number, resume: boolean): Promise<Dialled> {
    const dialled = await dial({ ...this.#target, kind, index, resume })
    const { lane } = dialled
    if (kind === 'control') {
      this.#control = lane
      this.#wasConnected = true
    }
    if (kind === 'fault') this.#fault = lane
    lane.open({
      onFrame: (frame, payload) => this.#events.onFrame(lane, frame, payload),
      onLost: (error) => {
        this.#log.info(error.message)
        if (this.#control === lane) this.#control = null
        this.#events.onLost(kind, index)
      },
    })
    return dialled
  }

  /**
   * Says `failed` on a lane that is dialled for it. A source that was never dialled waits for us, one whose worker was
   * killed in the freeze listens again a moment later, in case that we hold a complete copy. Not more than a courtesy.
   */
  async sayFailed(error: ErrorInfo): Promise<void> {
    for (let attempt = 0; attempt < farewells; attempt++) {
      try {
        const { lane } = await dial({
          ...this.#target,
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
