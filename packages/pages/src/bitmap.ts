/**
 * The pieces of a PageSet: chunks of 32768 bits, and operations on a word at a time. Bit numbers here count from the
 * start of a chunk.
 */
export const chunkPages = 32768
export const chunkWords = chunkPages / 32

export interface Chunk {
  words: Uint32Array
  count: number
}

/** Stands for every full chunk; never written to. */
export const fullChunk: Readonly<Chunk> = {
  words: new Uint32Array(chunkWords).fill(0xffffffff),
  count: chunkPages,
}

export function cloneChunk(chunk: Chunk): Chunk {
  return chunk === fullChunk ? fullChunk : { words: chunk.words.slice(), count: chunk.count }
}

/** Bits set in a 32-bit word: the usual sum over pairs, nibbles and bytes. */
function popcount(word: number): number {
  let x = word - ((word >>> 1) & 0x55555555)
  x = (x & 0x33333333) + ((x >>> 2) & 0x33333333)
  return Math.imul((x + (x >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24
}

/** words |= others. This and the next two functions return how many bits are set afterwards. */
export function orInto(words: Uint32Array, others: Uint32Array): number {
  let count = 0
  for (let w = 0; w < chunkWords; w++) {
    const word = words[w] | others[w]
    words[w] = word
    count += popcount(word)
  }
  return count
}

export function andInto(words: Uint32Array, others: Uint32Array): number {
  let count = 0
  for (let w = 0; w < chunkWords; w++) {
    const word = words[w] & others[w]
    words[w] = word
    count += popcount(word)
  }
  return count
}

export function andNotInto(words: Uint32Array, others: Uint32Array): number {
  let count = 0
  for (let w = 0; w < chunkWords; w++) {
    const word = words[w] & ~others[w]
    words[w] = word
    count += popcount(word)
  }
  return count
}

/** The bits from..to-1 of word w, where from and to count from the start of the chunk. */
function maskOf(w: number, from: number, to: number): number {
  const low = from > w * 32 ? -1 << (from & 31) : -1
  return to < w * 32 + 32 ? low & ((1 << (to & 31)) - 1) : low
}

export function setBits(words: Uint32Array, from: number, to: number): number {
  let added = 0
  for (let w = from >>> 5; w * 32 < to; w++) {
    const fresh = maskOf(w, from, to) & ~words[w]
    if (fresh === 0) continue
    words[w] |= fresh
    added += popcount(fresh)
  }
  return added
}

export function clearBits(words: Uint32Array, from: number, to: number): number {
  let cleared = 0
  for (let w = from >>> 5; w * 32 < to; w++) {
    const gone = maskOf(w, from, to) & words[w]
    if (gone === 0) continue
    words[w] &= ~gone
    cleared += popcount(gone)
  }
  return cleared
}

export function countBits(words: Uint32Array, from: number, to: number): number {
  let count = 0
  for (let w = from >>> 5; w * 32 < to; w++) {
    if (words[w] !== 0) count += popcount(words[w] & maskOf(w, from, to))
  }
  return count
}

function nextSetBit(words: Uint32Array, bit: number): number {
  if (bit >= chunkPages) return chunkPages
  let w = bit >>> 5
  let word = words[w] & (-1 << (bit & 31))
  while (word === 0) {
    if (++w === chunkWords) return chunkPages
    word = words[w]
  }
  return w * 32 + lowestBit(word)
}

function nextClearBit(words: Uint32Array, bit: number): number {
  if (words === fullChunk.words || bit >= chunkPages) return chunkPages
  let w = bit >>> 5
  let word = ~words[w] & (-1 << (bit & 31))
  while (word === 0) {
    if (++w === chunkWords) return chunkPages
    word = ~words[w]
  }
  return w * 32 + lowestBit(word)
}

function lowestBit(word: number): number {
  return 31 - Math.clz32(word & -word)
}

/** Walks the runs of a set; `first` and `end` are the run that `next` found. */
export class RunCursor {
  first = 0
  end = 0
  readonly #chunks: Map<number, Chunk>
  readonly #keys: number[]
  #index: number
  #words: Uint32Array
  #base = 0
  #bit = 0

  constructor(chunks: Map<number, Chunk>, keys: number[], index: number, page: number) {
    this.#chunks = chunks
    this.#keys = keys
    this.#index = index
    this.#words = fullChunk.words
    if (this.#load()) this.#bit = Math.max(0, page - this.#base)
  }

  #load(): boolean {
    if (this.#index >= this.#keys.length) return false
    const key = this.#keys[this.#index]
    this.#words = (this.#chunks.get(key) as Chunk).words
    this.#base = key * chunkPages
    this.#bit = 0
    return true
  }

  /** Page number of the next set bit, and stands on it; -1 at the end. */
  nextSet(): number {
    while (this.#index < this.#keys.length) {
      this.#bit = nextSetBit(this.#words, this.#bit)
      if (this.#bit < chunkPages) return this.#base + this.#bit
      this.#index++
      this.#load()
    }
    return -1
  }

  /** A run of at least `maxNr` pages may be cut at the end of a chunk, so that a batch never walks all of it. */
  next(maxNr = Number.POSITIVE_INFINITY): boolean {
    this.first = this.nextSet()
    if (this.first < 0) return false
    for (;;) {
      this.#bit = nextClearBit(this.#words, this.#bit)
      this.end = this.#base + this.#bit
      if (this.#bit < chunkPages) return true
      // The run reaches the end of the chunk. It continues if the next chunk follows directly.
      this.#index++
      if (
        !this.#load() ||
        this.end - this.first >= maxNr ||
        this.#base !== this.end ||
        (this.#words[0] & 1) === 0
      )
        return true
    }
  }
}
