import { ZstdDecompressor } from '@pageferry/kernel'
import { type FrameOf, maxPayloadBytes, pageBytesOf, WireError } from '@pageferry/wire'

/** Pages of batches and replies, whether they came compressed or not. For one thread. */
export class PageDecoder {
  #decompressor: ZstdDecompressor | null = null
  #pages: Buffer | null = null

  /**
   * The pages of a frame's runs: the payload itself, or a buffer that the next call uses again.
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
