import { pageBytes } from '@pageferry/base'
import { ZstdCompressor } from '@pageferry/kernel'
import type { CompressedReport } from '@pageferry/migration'

/** The fastest of zstd's own levels: beyond it, whoever sends becomes the slowest part of more links than it helps. */
const level = 1

/** Compresses batches of pages for one thread, and counts what that gave. */
export class PageCompressor {
  readonly #context = new ZstdCompressor(level)
  readonly counts: CompressedReport = { pages: 0, bytes: 0 }

  /**
   * Compresses pages into the front of `to`, which need not be larger. Answers the bytes, or 0 when they would not be
   * noticeably fewer: then the pages travel as they are.
   */
  compress(pages: Uint8Array, to: Uint8Array): number {
    const bytes = this.measure(pages, to)
    if (bytes > 0) {
      this.counts.pages += pages.length / pageBytes
      this.counts.bytes += bytes
    }
    return bytes
  }

  /** The same, of something that is not sent. */
  measure(pages: Uint8Array, to: Uint8Array): number {
    return this.#context.compress(pages, to.subarray(0, pages.length - (pages.length >> 4)))
  }
}
