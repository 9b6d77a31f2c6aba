import { type Logger, MiB, PageferryError } from '@pageferry/base'
import type { NamedImage } from '@pageferry/checkpoint'
import type { SourceEvent } from '@pageferry/migration'
import type { Settings } from '@pageferry/service'
import type { WorkerSpec } from '@pageferry/service/worker'
import type { CompressionCounts } from '@pageferry/wire'
import { type Frame, imagePieceBytes, type Lane as LaneKind, type LaneTerms } from '@pageferry/wire'
import type { Lane } from '@pageferry/wire/sockets'
import { LaneServer } from '@pageferry/wire/sockets'
import type { FaultFeed } from '../lazy/fault-feed.js'
import { type BatchPages, BulkLane } from './bulk-lane.js'
import { FaultLane } from './fault-lane.js'
import type { FaultTarget } from './fault-messages.js'
import { BulkCompression } from './lane-compression.js'

/**
 * How long the source waits for the destination to get the last message, when its lane is down or it does not hang up.
 */
const lingerMs = 30_000
/** How long a broken control lane must be down to count as hung up. Until then it may be dialled again. */
const hangUpMs = 1_500

/** Ports that the destination dials, on the host of the source. */
export interface LanePorts {
  /** For the control lane and the bulk lanes. */
  main: number
  fault: number
}

export interface Listening {
  ports: LanePorts
  /** URL of the main port. */
  url: string
}

/** A round of one address space. */
interface RoundName {
  asId: number
  round: number
}

type LaneEvent = Extract<SourceEvent, { type: 'connected' | 'laneLost' | 'reconnected' }>

export interface SourceLanesOptions {
  spec: Pick<WorkerSpec, 'id' | 'host' | 'token'>
  settings: Pick<Settings, 'bulkLanes' | 'bulkWindowMiB' | 'compression' | 'maxBandwidthMbit'>
  log: Logger
  /** Gets every frame except acknowledgements. May throw: that closes the lane. */
  onFrame(frame: Frame): void
  /** Gets the batches that were in flight on a lost connection. */
  onBatchesLost(batches: BatchPages[]): void
  onEvent(event: LaneEvent): void
}

/**
 * The connections of one migration as the source sees them. The source listens; the destination dials, and dials again.
 */
export class SourceLanes {
  readonly bulk: readonly BulkLane[]
  readonly #options: SourceLanesOptions
  readonly #terms: LaneTerms
  readonly #compression: BulkCompression
  #listening: Promise<Listening> | null = null
  #server: LaneServer | null = null
  #fault: FaultLane | null = null
  #control: Lane | null = null
  /** Lanes that connected at least once. */
  readonly #seen = new Set<string>()
  /** Bytes sent on control lanes that are gone. */
  #bytesBefore = 0
  #whenHungUp: (() => void) | null = null

  constructor(options: SourceLanesOptions) {
    this.#options = options
    const { bulkLanes, bulkWindowMiB, compression } = options.settings
    this.#terms = {
      compression: compression === 'off' ? 'none' : 'zstd',
      windowBytes: bulkWindowMiB * MiB,
    }
    this.#compression = new BulkCompression(options.settings, (isOn) => this.#fault?.compress(isOn))
    const lane = { windowBytes: this.#terms.windowBytes, compression: this.#compression }
    this.bulk = Array.from({ length: bulkLanes }, () => new BulkLane(lane))
  }

  /**
   * Listens. Without ports: on any. A successor takes those of its predecessor: the destination dials each lane again
   * by itself, in any order, and knows no other ports. Starting the thread takes a moment; a second call meanwhile gets
   * the same result.
   */
  listen(ports: LanePorts = { main: 0, fault: 0 }): Promise<Listening> {
    this.#listening ??= this.#startListening(ports)
    return this.#listening
  }

  async #startListening(ports: LanePorts): Promise<Listening> {
    const { spec, settings } = this.#options
    const common = {
      ...{ host: spec.host, migrationId: spec.id, token: spec.token },
      ...{ nrBulkLanes: settings.bulkLanes, terms: this.#terms },
    }
    const fault = await FaultLane.listen(
      { ...common, port: ports.fault, compress: settings.compression === 'zstd' },
      {
        onConnected: (resumed) => this.#announce('fault', 0, resumed),
        onLost: (error) => this.#noteLost('fault', 0, error),
      },
    )
    this.#fault = fault.lane
    const server = await LaneServer.listen({
      ...common,
      port: ports.main,
      kinds: ['control', 'bulk'],
      faultPort: fault.port,
      onLane: (lane, resumed) => this.#onLane(lane, resumed),
    })
    this.#server = server
    return { ports: { main: server.port, fault: fault.port }, url: server.url }
  }

  /** True from the call of `listen` on. */
  get isListening(): boolean {
    return this.#listening !== null
  }

  /** Whether a frame can be sent to the destination right now. */
  get isConnected(): boolean {
    return this.#control !== null
  }

  #onLane(lane: Lane, resumed: boolean): void {
    const { kind, index } = lane
    if (kind === 'bulk') {
      this.#options.onBatchesLost(this.bulk[index].lost())
      this.bulk[index].attach(lane)
    } else this.#control = lane
    this.#announce(kind, index, resumed)
    // Last: the lane may be lost already, and then calls `onLost` at once.
    lane.open({
      onFrame: (frame) => {
        if (frame.type === 'batchAck') this.bulk[index].acknowledge(frame.sequence)
        else this.#options.onFrame(frame)
      },
      onLost: (error) => this.#onLost(lane, error),
    })
  }

  #announce(kind: LaneKind, index: number, resumed: boolean): void {
    if (resumed) {
      this.#options.onEvent({ type: 'reconnected', lane: kind, index })
      return
    }
    this.#seen.add(`${kind}:${index}`)
    const all = 2 + this.bulk.length
    if (this.#seen.size === all) this.#options.onEvent({ type: 'connected' })
  }

  #onLost(lane: Lane, error: Error): void {
    const { kind, index } = lane
    if (kind === 'control') this.#bytesBefore += lane.bytesSent
    if (this.#control === lane) {
      this.#control = null
      // Only a lane that was up after the end can have carried the last message. One closed on purpose is not dialled
      // again.
      if (this.#whenHungUp !== null) setTimeout(() => this.#checkHungUp(), lane.isDone ? 0 : hangUpMs)
    }
    if (kind === 'bulk') this.#options.onBatchesLost(this.bulk[index].lost())
    this.#noteLost(kind, index, error)
  }

  #noteLost(kind: LaneKind, index: number, error: Error): void {
    this.#options.log.info(error.message)
    this.#options.onEvent({ type: 'laneLost', lane: kind, index })
  }

  /** Sends on the control lane. Dropped without one: a sender that needs an answer is told of the loss. */
  send(frame: Frame, payload?: Uint8Array, done?: () => void): void {
    if (this.#control === null) done?.()
    else this.#control.send(frame, payload, done)
  }

  /** Sends an image file for a round of an address space. Those of the whole workload travel with its root's. */
  sendImage({ asId, round }: RoundName, { name, bytes }: NamedImage): void {
    let offset = 0
    do {
      const piece = bytes.subarray(offset, offset + imagePieceBytes)
      this.send({ type: 'image', asId, round, name, totalBytes: bytes.length, offset }, piece)
      offset += imagePieceBytes
    } while (offset < bytes.length)
  }

  sendRoundBegin({ asId, round }: RoundName, final: boolean): void {
    this.send({ type: 'roundBegin', asId, round, final })
  }

  /** @param batchesPerLane number of batches of this round; with these the destination has all of it */
  sendRoundEnd({ asId, round }: RoundName, final: boolean, batchesPerLane: number[]): void {
    this.send({ type: 'roundEnd', asId, round, final, batchesPerLane })
  }

  /** Bytes sent on all lanes, over all their connections. */
  get bytesSent(): number {
    const others = (this.#control?.bytesSent ?? 0) + (this.#fault?.feed.bytesSent ?? 0)
    return this.bulk.reduce((sum, lane) => sum + lane.bytesSent, this.#bytesBefore + others)
  }

  /** Compression on all lanes. */
  get compressed(): CompressionCounts {
    const { pages, bytes } = this.#compression.counts
    const faults = this.#fault?.feed.compressed ?? { pages: 0, bytes: 0 }
    return { pages: pages + faults.pages, bytes: bytes + faults.bytes }
  }

  /**
   * Resolves when the peer has hung up, or after `lingerMs`. Until then it may have missed the last message and ask
   * again.
   */
  hungUp(): Promise<void> {
    return new Promise((resolve) => {
      this.#whenHungUp = resolve
      setTimeout(resolve, lingerMs)
    })
  }

  #checkHungUp(): void {
    if (this.#control === null) this.#whenHungUp?.()
  }

  /**
   * Starts to answer faults. Returns the feed of the thread that answers them.
   * @throws INTERNAL before `listen`
   */
  serveFaults(target: FaultTarget): FaultFeed {
    if (this.#fault === null) throw new PageferryError('INTERNAL', 'there is no fault lane yet')
    this.#fault.serve(target)
    return this.#fault.feed
  }

  close(): void {
    this.#server?.close()
    this.#fault?.close()
  }
}
