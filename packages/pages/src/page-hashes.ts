/** Pages per chunk of hashes. */
const chunkPages = 4096

/** One 64-bit hash per page, for sparse address spaces: 8 bytes a page in chunks that exist where something is stored. */
export class PageHashes {
  readonly #chunks = new Map<number, BigUint64Array>()

  set(page: number, hash: bigint): void {
    const key = Math.floor(page / chunkPages)
    let chunk = this.#chunks.get(key)
    if (chunk === undefined) {
      chunk = new BigUint64Array(chunkPages)
      this.#chunks.set(key, chunk)
    }
    chunk[page % chunkPages] = hash
  }

  /** What was stored for the page; 0n or undefined when nothing was. */
  get(page: number): bigint | undefined {
    return this.#chunks.get(Math.floor(page / chunkPages))?.[page % chunkPages]
  }

  /** Everything, as 8-byte words: [number of the chunk, its hashes], to be kept in a file. */
  toWords(): BigUint64Array {
    const words = new BigUint64Array(this.#chunks.size * (chunkPages + 1))
    let at = 0
    for (const [key, chunk] of this.#chunks) {
      words[at] = BigInt(key)
      words.set(chunk, at + 1)
      at += chunkPages + 1
    }
    return words
  }

  static fromWords(words: BigUint64Array): PageHashes {
    const hashes = new PageHashes()
    for (let at = 0; at < words.length; at += chunkPages + 1) {
      hashes.#chunks.set(Number(words[at]), words.slice(at + 1, at + 1 + chunkPages))
    }
    return hashes
  }
}
