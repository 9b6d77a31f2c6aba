import { addon } from './addon.js'

interface Native {
  createCompressor(level: number): object
  createDecompressor(): object
  compress(context: object, from: Uint8Array, to: Uint8Array): number
  decompress(context: object, from: Uint8Array, to: Uint8Array): boolean
}

const native = addon.zstd as Native

/** One context, for the thread that made it: about 1 MiB at level 1 and inputs of 1 MiB, from the first call on. */
export class ZstdCompressor {
  readonly #context: object

  /** @param level as zstd counts: 1 is the fastest that `zstd -1` knows */
  constructor(level: number) {
    this.#context = native.createCompressor(level)
  }

  /** Compresses `from` into one frame at the front of `to`: the number of its bytes, 0 when it does not fit there. */
  compress(from: Uint8Array, to: Uint8Array): number {
    return native.compress(this.#context, from, to)
  }
}

/** One context, for the thread that made it: about 160 KiB, whatever it is given. */
export class ZstdDecompressor {
  readonly #context = native.createDecompressor()

  /**
   * Whether `from` is exactly one frame with exactly as many bytes of content as `to` has; they are in `to` then. For
   * input that nobody vouches for: what a frame claims costs no memory, and nothing is written outside of `to`.
   */
  decompress(from: Uint8Array, to: Uint8Array): boolean {
    return native.decompress(this.#context, from, to)
  }
}
