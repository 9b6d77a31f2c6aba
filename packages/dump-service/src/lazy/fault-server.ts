import { closeSync, openSync } from 'node:fs'
import { pageBytes } from '@pageferry/base'
import type { CompressionCounts } from '@pageferry/wire'
import {
  encodeFrameInto,
  type Frame,
  type FrameOf,
  faultPendingMax,
  frameBufferBytes,
  headerReserveBytes,
  maxFaultPages,
  WireError,
} from '@pageferry/wire'
import type { Lane } from '@pageferry/wire/sockets'
import { PageCompressor } from '@pageferry/wire/sockets'
import type { FaultTarget } from '../lanes/fault-messages.js'
import { PageReader } from '../rounds/page-reader.js'
import type { FaultFeed } from './fault-feed.js'
import { SentBitmap } from './sent-bitmap.js'

/** Fewer pages are not compressed: on any link that compresses, their transfer takes less time than the round trip. */
const minCompressedPages = 4

type Request = FrameOf<'pageRequest'> | FrameOf<'discard'>

/**
 * Answers the page requests of the fault lane, in a thread that does nothing else. The original is frozen, so pages can
 * be read at any time and any number of times.
 */
export class FaultServer {
  readonly #feed: FaultFeed
  readonly #buffer = Buffer.allocUnsafeSlow(frameBufferBytes)
  #target: FaultTarget | null = null
  #sent = new SentBitmap(new Float64Array(0))
  #reader: PageReader | null = null
  #memFd = -1
  /** Requests that overtook the message that tells this thread to serve. */
  readonly #early: { lane: Lane; frame: Request }[] = []
  #compresses = false
  #compressor: PageCompressor | null = null
  #compressed: Buffer | null = null
  /** Replies that the kernel has not taken yet. */
  #replying = 0

  constructor(feed: FaultFeed) {
    this.#feed = feed
  }

  get compressed(): CompressionCounts {
    return this.#compressor?.counts ?? { pages: 0, bytes: 0 }
  }

  /**
   * Turns on or off the compression of replies with several pages, where the lane's handshake allows it. It takes some
   * 0.5 ms for the largest reply. The link was measured to take longer for the bytes that it saves.
   */
  compress(isOn: boolean): void {
    this.#compresses = isOn
  }

  /** Starts to serve: the workload was handed over. */
  serve(target: FaultTarget): void {
    this.#target = target
    this.#sent = SentBitmap.of(target.sent)
    for (const { lane, frame } of this.#early.splice(0)) {
      try {
        this.onFrame(lane, frame)
      } catch (error) {
        lane.close(error)
      }
    }
  }

  /** Opens with the first request. If the original is gone, the lane fails and not the thread. */
  #open({ pid }: FaultTarget): PageReader {
    // Our own descriptor: the worker may close its own at any time.
    this.#memFd = openSync(`/proc/${pid}/mem`, 'r')
    return new PageReader(pid, this.#memFd, null)
  }

  /** @throws WireError: nothing of the frame was done */
  onFrame(lane: Lane, frame: Request): void {
    if (this.#target === null) {
      if (this.#early.length >= faultPendingMax) tooManyRequests()
      this.#early.push({ lane, frame })
      return
    }
    const { asId, round } = this.#target
    if (frame.asId !== asId || frame.round !== round) {
      throw new WireError(
        'OUT_OF_ORDER',
        `address space ${frame.asId}, round ${frame.round} is not being served`,
      )
    }
    if (frame.type === 'discard') {
      for (let r = 0; r < frame.runs.length; r += 2) this.#mustBeKnown(frame.runs[r], frame.runs[r + 1])
      this.#sent.claim(frame.runs)
      return
    }
    this.#mustBeKnown(frame.page, frame.nrPages)
    this.#reader ??= this.#open(this.#target)
    this.#reply(lane, this.#reader, frame)
  }

  #mustBeKnown(page: number, nrPages: number): void {
    if (!this.#sent.covers(page, nrPages)) {
      throw new WireError('OUTSIDE_PROCESS', `page 0x${page.toString(16)} is not a lazy page of the process`)
    }
  }

  #reply(lane: Lane, reader: PageReader, request: FrameOf<'pageRequest'>): void {
    const { asId, round, requestId, page, nrPages, ahead } = request
    if (this.#replying >= faultPendingMax) tooManyRequests()
    const buffer = this.#buffer
    const window = Float64Array.of(page, nrPages)
    const unsent = this.#sent.claim(window)
    // A page that a thread waits for is sent again even if it was pushed: the push may be stuck behind a full window.
    const wanted = ahead ? unsent : window
    const read = reader.read(wanted, wanted.length >> 1, buffer.subarray(headerReserveBytes), false)
    const { runs, zeroRuns } = read
    const zstdBytes = this.#compress(lane, read.nrPages)
    const frame: Frame = {
      type: 'pageReply',
      asId,
      round,
      requestId,
      page,
      nrPages,
      runs,
      zeroRuns,
      zstdBytes,
    }
    const from = zstdBytes > 0 && this.#compressed !== null ? this.#compressed : buffer
    // Copy: ws may still be sending the previous reply, and 4 KiB cost nothing.
    const message = Buffer.from(encodeFrameInto(frame, from, zstdBytes || read.nrPages * pageBytes))
    this.#replying++
    lane.sendBytes(message, () => {
      this.#replying--
    })
    this.#feed.noteReply(page, message.length, this.compressed)
  }

  /** Compresses the pages of `#buffer` into `#compressed`. Returns the bytes; 0: send them as they are. */
  #compress({ terms }: Lane, nrPages: number): number {
    if (!this.#compresses || terms.compression !== 'zstd' || nrPages < minCompressedPages) return 0
    this.#compressor ??= new PageCompressor()
    this.#compressed ??= Buffer.allocUnsafeSlow(headerReserveBytes + maxFaultPages * pageBytes)
    const pages = this.#buffer.subarray(headerReserveBytes, headerReserveBytes + nrPages * pageBytes)
    return this.#compressor.compress(pages, this.#compressed.subarray(headerReserveBytes))
  }

  close(): void {
    if (this.#memFd >= 0) closeSync(this.#memFd)
    this.#memFd = -1
  }
}

function tooManyRequests(): never {
  throw new WireError(
    'WINDOW_EXCEEDED',
    `more than ${faultPendingMax} page requests without taking the replies`,
  )
}
