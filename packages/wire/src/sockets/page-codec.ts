import { pageBytes } from '@pageferry/base'
import { ZstdCompressor, ZstdDecompressor } from '@pageferry/kernel'
import { type CompressionCounts, type FrameOf, maxPayloadBytes, pageBytesOf, WireError } from '../index.js'

/** The fastest of zstd's own levels. With higher ones compression would slow down more links than it helps. */
const level = 1

/** Compresses batches of pages for one thread, and counts the result. */
export class PageCompressor {
  readonly #context = new ZstdCompressor(level)
  readonly counts: CompressionCounts = { pages: 0, bytes: 0 }

  /**
   * Compresses pages into the front of `to`, which need not be larger. Returns the bytes, or 0 when they would not be
   * noticeably fewer: then send the pages uncompressed.
   */
  compress(pages: Uint8Array, to: Uint8Array): number {
    const bytes = this.measure(pages, to)
    if (bytes > 0) {
      this.counts.pages += pages.length / pageBytes
      this.counts.bytes += bytes
    }
    return bytes
  }

  /** Does the same with pages that are not sent. */
  measure(pages: Uint8Array, to: Uint8Array): number {
    return this.#context.compress(pages, to.subarray(0, pages.length - (pages.length >> 4)))
  }
}

/** Returns the pages of batches and replies, whether they came compressed or not. For one thread. */
export class PageDecoder {
  #decompressor: ZstdDecompressor | null = null
  #pages: Buffer | null = null

  /**
   * The pages of a frame's runs: the payload itself, or a buffer that the next call reuses.
   * @throws WireError BAD_PAYLOAD: the payload is no frame of zstd, or does not hold exactly the pages of the runs
   */
  pagesOf(frame: FrameOf<'pageBatch'> | FrameOf<'pageReply'>, payload: Uint8Array): Uint8Array {
    if (frame.zstdBytes === 0) return payload
    this.#decompressor ??= new ZstdDecompressor()
    this.#pages ??= Buffer.allocUnsafeSlow(maxPayloadBytes)
    const pages = this.#pages.subarray(0, pageBytesOf(frame))
    if (this.#decompressor.decompress(payload, pages)) return pages
    throw new WireError(
      'BAD_PAYLOAD',
      `the ${payload.length} bytes of a ${frame.type} do not decompress to ${pages.length}`,
    )
  }
}
