import { readSync } from 'node:fs'
import { pageBytes } from '@pageferry/base'
import { ghostChunkBytes as chunkBytes, type Extent } from '@pageferry/checkpoint'
import { memory } from '@pageferry/kernel'

/** The contents of a ghost in chunks, each of which is compared and sent as one. */

/** The extents cut at the borders of chunks, by chunk. */
export function* chunksOf(extents: readonly Extent[]): Generator<[number: number, parts: Extent[]]> {
  let current = -1
  let parts: Extent[] = []
  for (const { offset, bytes } of extents) {
    for (let at = offset; at < offset + bytes; ) {
      const number = Math.floor(at / chunkBytes)
      const end = Math.min(offset + bytes, (number + 1) * chunkBytes)
      if (number !== current && parts.length > 0) {
        yield [current, parts]
        parts = []
      }
      current = number
      parts.push({ offset: at, bytes: end - at })
      at = end
    }
  }
  if (parts.length > 0) yield [current, parts]
}

/** One chunk at a time. */
export class GhostChunk {
  readonly #buffer = Buffer.allocUnsafeSlow(chunkBytes)
  readonly #hashes = new BigUint64Array(chunkBytes / pageBytes)

  /**
   * Reads what lies in `parts`; they end early when the file has become shorter.
   *
   * @returns also a hash of where its data lies: zeros are no hole
   */
  read(fd: number, number: number, parts: readonly Extent[]): { pieces: Extent[]; hash: string } {
    const pieces = parts.map((part) => this.#readPart(fd, part)).filter(({ bytes }) => bytes > 0)
    return { pieces, hash: this.#hash(pieces, number) }
  }

  /** What was read last, until the next `read`. */
  bytesOf({ offset, bytes }: Extent): Uint8Array {
    const at = offset % chunkBytes
    return this.#buffer.subarray(at, at + bytes)
  }

  #readPart(fd: number, { offset, bytes }: Extent): Extent {
    let got = 0
    while (got < bytes) {
      const n = readSync(fd, this.#buffer, (offset % chunkBytes) + got, bytes - got, offset + got)
      if (n === 0) break
      got += n
    }
    return { offset, bytes: got }
  }

  #hash(pieces: readonly Extent[], number: number): string {
    const covered = pieces.map(({ offset, bytes }) => `${offset}+${bytes}`).join()
    let end = 0
    for (const { offset, bytes } of pieces) {
      const at = offset - number * chunkBytes
      this.#buffer.fill(0, end, at)
      end = at + bytes
    }
    const nrPages = Math.ceil(end / pageBytes)
    this.#buffer.fill(0, end, nrPages * pageBytes)
    memory.hashPages(this.#buffer, nrPages, this.#hashes)
    return `${covered} ${this.#hashes.subarray(0, nrPages).join()}`
  }
}
