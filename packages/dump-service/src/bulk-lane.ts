import { performance } from 'node:perf_hooks'
import { FlightWindow } from '@pageferry/memory'
import type { Lane } from '@pageferry/service/worker'
import {
  bulkWindowBatches,
  bulkWindowBytes,
  encodeFrameInto,
  type Frame,
  frameBufferBytes,
  headerReserveBytes,
  maxPayloadBytes,
  WireError,
} from '@pageferry/wire'

/** A pooled buffer: the frame's header goes right in front of the pages. */
export interface PageBuffer {
  readonly bytes: Buffer
  /** Room for the pages of one batch. */
  readonly pages: Buffer
}

/** Buffers in use at once: those of one window, and one being filled. */
const maxBuffers = 5

/** Run tables of one batch: pages with content, and pages that are all zeros. */
export interface BatchPages {
  runs: Float64Array
  zeroRuns: Float64Array
}

interface Unacknowledged extends BatchPages {
  bytes: number
}

/**
 * One bulk lane with its window: what was sent and not acknowledged as installed is bounded, so a fault reply
 * never waits behind more than that, and neither side queues without limit.
 */
export class BulkLane {
  #lane: Lane | null = null
  readonly #free: PageBuffer[] = []
  #buffers = 0
  #inFlightBytes = 0
  #sequence = 0
  /** Frames with their headers, over all connections. */
  bytesSent = 0
  readonly #inFlight = new Map<number, Unacknowledged>()
  /** Of the lazy phase, when somebody may wait behind what is on its way. */
  readonly #window = new FlightWindow()
  /** Each is called once, at the next change. */
  readonly #waiting = new Set<() => void>()

  attach(lane: Lane): void {
    this.#lane = lane
    this.#wake()
  }

  get isUp(): boolean {
    return this.#lane?.isOpen === true
  }

  /** Batches sent so far, also those that were lost. */
  get batches(): number {
    return this.#sequence
  }

  get hasRoom(): boolean {
    return (
      this.isUp &&
      this.#inFlightBytes + maxPayloadBytes <= bulkWindowBytes &&
      this.#inFlight.size < bulkWindowBatches &&
      (this.#free.length > 0 || this.#buffers < maxBuffers)
    )
  }

  /** In the lazy phase: more would delay the page that a thread waits for. */
  get hasRoomToPush(): boolean {
    return this.hasRoom && this.#window.hasRoom
  }

  /** Pages of a batch that is pushed. */
  get pushPages(): number {
    return this.#window.batchPages
  }

  get isIdle(): boolean {
    return this.#inFlight.size === 0
  }

  /**
   * Resolves when the state of one of the lanes has changed (an acknowledgement, a free buffer, a new connection), or
   * when the signal fires. Leaves nothing behind on the lanes that have not changed: one may be down for hours.
   */
  static changed(lanes: readonly BulkLane[], signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        for (const lane of lanes) lane.#waiting.delete(done)
        signal.removeEventListener('abort', done)
        resolve()
      }
      for (const lane of lanes) lane.#waiting.add(done)
      signal.addEventListener('abort', done)
      if (signal.aborted) done()
    })
  }

  #wake(): void {
    for (const done of this.#waiting) done()
  }

  takeBuffer(): PageBuffer {
    const free = this.#free.pop()
    if (free !== undefined) return free
    this.#buffers++
    const bytes = Buffer.allocUnsafeSlow(frameBufferBytes)
    return { bytes, pages: bytes.subarray(headerReserveBytes) }
  }

  giveBack(buffer: PageBuffer): void {
    this.#free.push(buffer)
    this.#wake()
  }

  /** Sends the pages that lie at the front of the buffer. The run tables are kept until acknowledged. */
  send(
    batch: BatchPages & { asId: number; round: number },
    buffer: PageBuffer,
    payloadBytes: number,
  ): number {
    const sequence = ++this.#sequence
    const frame: Frame = { type: 'pageBatch', ...batch, sequence }
    const message = encodeFrameInto(frame, buffer.bytes, payloadBytes)
    this.#inFlight.set(sequence, { bytes: payloadBytes, runs: batch.runs, zeroRuns: batch.zeroRuns })
    this.#inFlightBytes += payloadBytes
    this.#window.sent(sequence, payloadBytes, performance.now())
    this.bytesSent += message.length
    // Released here, not on acknowledgement: the kernel has the bytes now.
    if (this.#lane === null) this.giveBack(buffer)
    else this.#lane.sendBytes(message, () => this.giveBack(buffer))
    return message.length
  }

  acknowledge(sequence: number): void {
    const batch = this.#inFlight.get(sequence)
    if (batch === undefined) throw new WireError('OUT_OF_ORDER', `batch ${sequence} is not in flight`)
    this.#inFlight.delete(sequence)
    this.#inFlightBytes -= batch.bytes
    this.#window.acknowledged(sequence, performance.now())
    this.#wake()
  }

  /** The connection is gone: what was in flight, to be sent again. */
  lost(): BatchPages[] {
    const batches = [...this.#inFlight.values()]
    this.#inFlight.clear()
    this.#inFlightBytes = 0
    this.#window.lost()
    this.#wake()
    return batches
  }
}
