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

  /** @param level as zstd counts: 1 is that of `zstd -1` */
  constructor(level: number) {
    this.#context = native.createCompressor(level)
  }

  /** Compresses `from` into one frame at the front of `to`. Returns its length in bytes, 0 when it does not fit. */
  compress(from: Uint8Array, to: Uint8Array): number {
    return native.compress(this.#context, from, to)
  }
}

/** One context, for the thread that made it: about 160 KiB for any input. */
export class ZstdDecompressor {
  readonly #context = native.createDecompressor()

  /**
   * Whether `from` is exactly one frame whose content has exactly the length of `to`; `to` holds it then. The input may
   * be hostile: the claims of a frame cost no memory, and nothing is written outside `to`.
   */
  decompress(from: Uint8Array, to: Uint8Array): boolean {
    return native.decompress(this.#context, from, to)
  }
}
