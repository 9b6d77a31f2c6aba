/** Pages per chunk of hashes. */
const chunkPages = 4096

/**
 * One 64-bit hash per page, for sparse address spaces: 8 bytes per page, in chunks that exist only where something is
 * stored.
 */
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

  /** The stored hash of the page; 0n or undefined if there is none. */
  get(page: number): bigint | undefined {
    return this.#chunks.get(Math.floor(page / chunkPages))?.[page % chunkPages]
  }
}
