import { performance } from 'node:perf_hooks'
import { pageBytes } from '@pageferry/base'
import { type CompressionDecision, FlightWindow } from '@pageferry/pages'
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
import type { Lane } from '@pageferry/wire/sockets'
import type { BulkCompression, LaneCompression } from './lane-compression.js'

/** A pooled buffer, with room for the frame's header right in front of the pages. */
export interface PageBuffer {
  readonly bytes: Buffer
  /** Room for the pages of one batch. It lies in `bytes`, unless they are compressed into it. */
  readonly pages: Buffer
  readonly compression: CompressionDecision
}

/**
 * Buffers in use at once: those of the default window, and one being filled. The kernel takes most of a larger window.
 */
const maxBuffers = 5

/** Run tables of one batch: pages with content, and pages that are all zeros. */
export interface BatchPages {
  runs: Float64Array
  zeroRuns: Float64Array
}

interface Unacknowledged extends BatchPages {
  bytes: number
}

export interface BulkLaneOptions {
  /** Bytes in flight without an acknowledgement. Default: the protocol's. */
  windowBytes?: number
  /** Default: no compression. */
  compression?: BulkCompression
}

/**
 * One bulk lane with its window. The window bounds the bytes that were sent and not acknowledged as installed. So a
 * fault reply never waits behind more than that, and neither side queues without limit.
 */
export class BulkLane {
  readonly #windowBytes: number
  readonly #allCompression: BulkCompression | null
  #compression: LaneCompression | null = null
  #lane: Lane | null = null
  readonly #free: Buffer[] = []
  #buffers = 0
  #inFlightBytes = 0
  #sequence = 0
  /** Bytes of frames with their headers, over all connections. */
  bytesSent = 0
  readonly #inFlight = new Map<number, Unacknowledged>()
  /** The window of the lazy phase, when a fault's page may wait behind batches in flight. */
  readonly #window: FlightWindow
  /** Since the last batch the sender had to wait, for this lane or for the user's limit. */
  #heldBack = false
  /** Callbacks. Each is called once, at the next change. */
  readonly #waiting = new Set<() => void>()

  constructor({ windowBytes = bulkWindowBytes, compression }: BulkLaneOptions = {}) {
    this.#windowBytes = windowBytes
    this.#window = new FlightWindow(windowBytes)
    this.#allCompression = compression ?? null
  }

  attach(lane: Lane): void {
    this.#lane = lane
    this.#compression = this.#allCompression?.forLane(lane.terms) ?? null
    this.#wake()
  }

  get isUp(): boolean {
    return this.#lane?.isOpen === true
  }

  /** Batches sent so far, including lost ones. */
  get batches(): number {
    return this.#sequence
  }

  get hasRoom(): boolean {
    return (
      this.isUp &&
      this.#inFlightBytes + maxPayloadBytes <= this.#windowBytes &&
      this.#inFlight.size < bulkWindowBatches &&
      (this.#free.length > 0 || this.#buffers < maxBuffers)
    )
  }

  /** For the lazy phase: more bytes in flight would delay the page that a thread waits for. */
  get hasRoomToPush(): boolean {
    return this.hasRoom && this.#window.hasRoom
  }

  /** Pages of one pushed batch. */
  get pushPages(): number {
    return this.#window.batchPages
  }

  get isIdle(): boolean {
    return this.#inFlight.size === 0
  }

  /**
   * Resolves when the state of one of the lanes has changed (an acknowledgement, a free buffer, a new connection), or
   * when the signal fires. Leaves no callback behind on the other lanes, which may be down for hours.
   */
  static changed(lanes: readonly BulkLane[], signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        for (const lane of lanes) lane.#waiting.delete(done)
        signal.removeEventListener('abort', done)
        resolve()
      }
      for (const lane of lanes) {
        lane.noteHeldBack()
        lane.#waiting.add(done)
      }
      signal.addEventListener('abort', done)
      if (signal.aborted) done()
    })
  }

  /** Notes that the sender has to wait before the next batch. */
  noteHeldBack(): void {
    this.#heldBack = true
  }

  #wake(): void {
    for (const done of this.#waiting) done()
  }

  takeBuffer(): PageBuffer {
    const compression = this.#compression?.next(this.#heldBack, this.#window.rate) ?? 'plain'
    this.#heldBack = false
    const bytes = this.#free.pop() ?? this.#newBuffer()
    const elsewhere = compression === 'compress' ? this.#compression?.pages : undefined
    const pages = elsewhere ?? bytes.subarray(headerReserveBytes)
    return { bytes, pages, compression }
  }

  #newBuffer(): Buffer {
    this.#buffers++
    return Buffer.allocUnsafeSlow(frameBufferBytes)
  }

  giveBack({ bytes }: Pick<PageBuffer, 'bytes'>): void {
    this.#free.push(bytes)
    this.#wake()
  }

  /**
   * Compresses the pages at the front of the buffer, if that was decided. Returns the bytes, or 0: send them as they
   * are.
   */
  #compress({ bytes, pages, compression }: PageBuffer, nrBytes: number): number {
    if (nrBytes === 0 || compression === 'plain') return 0
    if (compression === 'sample') {
      this.#compression?.sample(pages.subarray(0, nrBytes))
      return 0
    }
    const room = bytes.subarray(headerReserveBytes)
    const compressed = this.#compression?.compress(nrBytes, room) ?? 0
    if (compressed === 0) pages.copy(room, 0, 0, nrBytes)
    return compressed
  }

  /**
   * Sends the pages that lie at the front of the buffer. The run tables are kept until acknowledged. Call it in the
   * same turn as `takeBuffer`.
   * @param nrBytes length of the pages
   * @returns bytes of the message
   */
  send(batch: BatchPages & { asId: number; round: number }, buffer: PageBuffer, nrBytes: number): number {
    const sequence = ++this.#sequence
    const zstdBytes = this.#compress(buffer, nrBytes)
    const payloadBytes = zstdBytes || nrBytes
    const frame: Frame = { type: 'pageBatch', ...batch, sequence, zstdBytes }
    const message = encodeFrameInto(frame, buffer.bytes, payloadBytes)
    this.#inFlight.set(sequence, { bytes: nrBytes, runs: batch.runs, zeroRuns: batch.zeroRuns })
    this.#inFlightBytes += nrBytes
    this.#window.sent(sequence, payloadBytes, performance.now(), nrBytes / pageBytes)
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

  /** The connection is lost: returns the batches in flight, which must be sent again. */
  lost(): BatchPages[] {
    const batches = [...this.#inFlight.values()]
    this.#inFlight.clear()
    this.#inFlightBytes = 0
    this.#window.lost()
    this.#allCompression?.forget(this.#compression)
    this.#compression = null
    this.#wake()
    return batches
  }
}
