import { type FrameOf, WireError } from '@pageferry/wire'

/** Images under way at once. The wire bounds each of them already. */
const maxPartial = 4
/** One core image per thread, and about ten more. */
const maxImages = 20_000

/** Assembles image files from their pieces, which come in order on the control lane. */
export class ImageReceiver {
  readonly #partial = new Map<string, { bytes: Buffer; filled: number; totalBytes: number }>()
  readonly #done: (name: string, bytes: Uint8Array) => void
  #count = 0

  constructor(done: (name: string, bytes: Uint8Array) => void) {
    this.#done = done
  }

  add(frame: FrameOf<'image'>, payload: Uint8Array): void {
    const { name, totalBytes, offset } = frame
    let image = this.#partial.get(name)
    if (offset === 0) {
      if (this.#partial.size >= maxPartial || this.#count >= maxImages) {
        throw new WireError('TOO_LARGE', 'too many image files')
      }
      this.#count++
      // Do not trust the announced size: the buffer grows with the bytes that really arrive.
      image = { bytes: Buffer.alloc(Math.min(totalBytes, 2 * payload.length)), filled: 0, totalBytes }
      this.#partial.set(name, image)
    }
    if (image === undefined || image.filled !== offset || image.totalBytes !== totalBytes) {
      throw new WireError(
        'OUT_OF_ORDER',
        `image ${name}: piece at ${offset} of ${totalBytes} is not the next one`,
      )
    }
    if (image.bytes.length < offset + payload.length) {
      const larger = Buffer.alloc(
        Math.min(totalBytes, Math.max(2 * image.bytes.length, offset + payload.length)),
      )
      image.bytes.copy(larger)
      image.bytes = larger
    }
    image.bytes.set(payload, offset)
    image.filled += payload.length
    if (image.filled === totalBytes) {
      this.#partial.delete(name)
      this.#done(name, image.bytes.subarray(0, totalBytes))
    }
  }
}
