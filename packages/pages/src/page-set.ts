import { type RunTable, runCapacity } from '@pageferry/base'
import {
  andInto,
  andNotInto,
  type Chunk,
  chunkPages,
  chunkWords,
  clearBits,
  cloneChunk,
  countBits,
  fullChunk,
  orInto,
  RunCursor,
  setBits,
} from './bitmap.js'

export { chunkPages }

/** 57-bit addresses would need more; 48-bit ones, the only ones that pageferry moves, need exactly this. */
export const maxPages = 2 ** 36

export interface FilledRuns {
  nrRuns: number
  nrPages: number
  /** First page of the set that was not returned, for the next call; -1 when there is none. */
  nextPage: number
}

/**
 * A set of page numbers (0 .. 2^36) as a chunked bitmap.
 *
 * 32768 pages (128 MiB of memory) share one chunk of 4 KiB. Chunks exist only where pages are, and all full chunks are
 * one shared constant. So 8 GiB of resident memory cost 256 KiB, and a reservation of 1 TiB costs a few thousand map
 * entries. Set operations work on 32 pages at a time. Every chunk knows its count, so `count` is free and ranges skip
 * whole chunks.
 *
 * Page numbers do not fit 32-bit integer arithmetic: they are split into chunk and bit by division before any shift is
 * used. A set must not be changed while it is iterated.
 */
export class PageSet {
  readonly #chunks = new Map<number, Chunk>()
  /** The chunk numbers in ascending order. */
  #keys: number[] = []
  #count = 0

  /** The set of the first `nrRuns` runs of a table, in any order, overlapping or not. */
  static fromRuns(table: RunTable, nrRuns = runCapacity(table)): PageSet {
    const set = new PageSet()
    set.addRuns(table, nrRuns)
    return set
  }

  static of(...runs: ReadonlyArray<readonly [first: number, nr: number]>): PageSet {
    const set = new PageSet()
    for (const [first, nr] of runs) set.addRange(first, nr)
    return set
  }

  get count(): number {
    return this.#count
  }

  get isEmpty(): boolean {
    return this.#count === 0
  }

  has(page: number): boolean {
    const key = Math.floor(page / chunkPages)
    const chunk = this.#chunks.get(key)
    if (chunk === undefined) return false
    const bit = page - key * chunkPages
    return (chunk.words[bit >>> 5] & (1 << (bit & 31))) !== 0
  }

  /** Adds pages first .. first+nr-1. Returns how many of them were new. */
  addRange(first: number, nr: number): number {
    const end = checkedEnd(first, nr)
    let added = 0
    for (let page = first; page < end; ) {
      const key = Math.floor(page / chunkPages)
      const base = key * chunkPages
      const to = Math.min(chunkPages, end - base)
      added += this.#addBits(key, page - base, to)
      page = base + to
    }
    this.#count += added
    return added
  }

  /** Removes pages first .. first+nr-1. Returns how many of them were in the set. */
  removeRange(first: number, nr: number): number {
    const end = checkedEnd(first, nr)
    if (end === first || this.#count === 0) return 0
    let removed = 0
    let emptied = false
    for (let i = this.#lowerBound(Math.floor(first / chunkPages)); i < this.#keys.length; i++) {
      const key = this.#keys[i]
      const base = key * chunkPages
      if (base >= end) break
      const chunk = this.#chunks.get(key) as Chunk
      const from = Math.max(0, first - base)
      const to = Math.min(chunkPages, end - base)
      if (from === 0 && to === chunkPages) {
        removed += chunk.count
        this.#chunks.delete(key)
        emptied = true
        continue
      }
      if (countBits(chunk.words, from, to) === 0) continue
      const own = this.#writable(key, chunk)
      const cleared = clearBits(own.words, from, to)
      own.count -= cleared
      removed += cleared
      if (own.count === 0) {
        this.#chunks.delete(key)
        emptied = true
      }
    }
    this.#count -= removed
    if (emptied) this.#dropMissingKeys()
    return removed
  }

  addRuns(table: RunTable, nrRuns = runCapacity(table)): number {
    let added = 0
    for (let i = 0; i < nrRuns; i++) added += this.addRange(table[2 * i], table[2 * i + 1])
    return added
  }

  removeRuns(table: RunTable, nrRuns = runCapacity(table)): number {
    let removed = 0
    for (let i = 0; i < nrRuns; i++) removed += this.removeRange(table[2 * i], table[2 * i + 1])
    return removed
  }

  /** Keeps only pages inside the runs, which are ascending and do not overlap. Returns the number of removed pages. */
  removeOutside(table: RunTable, nrRuns = runCapacity(table)): number {
    let removed = 0
    let gap = 0
    for (let i = 0; i < nrRuns; i++) {
      const first = table[2 * i]
      if (first < gap) throw new RangeError(`run at page ${first} is out of order`)
      removed += this.removeRange(gap, first - gap)
      gap = first + table[2 * i + 1]
    }
    return removed + this.removeRange(gap, maxPages - gap)
  }

  clear(): void {
    this.#chunks.clear()
    this.#keys = []
    this.#count = 0
  }

  clone(): PageSet {
    const copy = new PageSet()
    for (const [key, chunk] of this.#chunks) copy.#chunks.set(key, cloneChunk(chunk))
    copy.#keys = this.#keys.slice()
    copy.#count = this.#count
    return copy
  }

  /** Adds every page of the other set. Returns this. */
  union(other: PageSet): this {
    if (other === this) return this
    for (const key of other.#keys) {
      const theirs = other.#chunks.get(key) as Chunk
      const mine = this.#chunks.get(key)
      if (mine === undefined) {
        this.#insertKey(key)
        this.#chunks.set(key, cloneChunk(theirs))
        this.#count += theirs.count
      } else if (mine !== fullChunk) {
        const before = mine.count
        if (theirs === fullChunk) this.#chunks.set(key, fullChunk)
        else {
          mine.count = orInto(mine.words, theirs.words)
          if (mine.count === chunkPages) this.#chunks.set(key, fullChunk)
        }
        this.#count += (this.#chunks.get(key) as Chunk).count - before
      }
    }
    return this
  }

  /** Removes every page of the other set. Returns this. */
  subtract(other: PageSet): this {
    if (other === this) {
      this.clear()
      return this
    }
    return this.#combine(other, true)
  }

  /** Removes every page that is not in the other set. Returns this. */
  intersect(other: PageSet): this {
    return other === this ? this : this.#combine(other, false)
  }

  equals(other: PageSet): boolean {
    if (this.#count !== other.#count || this.#keys.length !== other.#keys.length) return false
    for (const key of this.#keys) {
      const mine = this.#chunks.get(key) as Chunk
      const theirs = other.#chunks.get(key)
      if (theirs === undefined || mine.count !== theirs.count) return false
      for (let w = 0; w < chunkWords; w++) if (mine.words[w] !== theirs.words[w]) return false
    }
    return true
  }

  /** How many of the pages first .. first+nr-1 are in the set. */
  countRange(first: number, nr: number): number {
    const end = checkedEnd(first, nr)
    let count = 0
    for (let i = this.#lowerBound(Math.floor(first / chunkPages)); i < this.#keys.length; i++) {
      const base = this.#keys[i] * chunkPages
      if (base >= end) break
      const chunk = this.#chunks.get(this.#keys[i]) as Chunk
      const from = Math.max(0, first - base)
      const to = Math.min(chunkPages, end - base)
      count += from === 0 && to === chunkPages ? chunk.count : countBits(chunk.words, from, to)
    }
    return count
  }

  /** The smallest page of the set that is not below `page`; -1 when there is none. */
  firstFrom(page: number): number {
    const cursor = this.#cursor(page)
    return cursor.nextSet()
  }

  /** How many pages from `page` on are in the set without a gap; looks no further than `maxNr`. */
  runLength(page: number, maxNr: number): number {
    const cursor = this.#cursor(page)
    return cursor.next(maxNr) && cursor.first === page ? Math.min(cursor.end - page, maxNr) : 0
  }

  /** Calls back once per maximal run, ascending. */
  forEachRun(callback: (first: number, nr: number) => void): void {
    const cursor = this.#cursor(0)
    while (cursor.next()) callback(cursor.first, cursor.end - cursor.first)
  }

  /** The same for the part of the set inside first .. first+nr-1, cut at its borders. */
  forEachRunIn(first: number, nr: number, callback: (first: number, nr: number) => void): void {
    const end = checkedEnd(first, nr)
    if (end === first) return
    const cursor = this.#cursor(first)
    while (cursor.next() && cursor.first < end) {
      callback(cursor.first, Math.min(cursor.end, end) - cursor.first)
      if (cursor.end >= end) return
    }
  }

  *runs(): Generator<[first: number, nr: number]> {
    const cursor = this.#cursor(0)
    while (cursor.next()) yield [cursor.first, cursor.end - cursor.first]
  }

  /** Every run, in a table of exactly the right size. */
  runTable(): RunTable {
    let table = new Float64Array(256)
    let used = 0
    const cursor = this.#cursor(0)
    while (cursor.next()) {
      if (used === table.length) {
        const larger = new Float64Array(table.length * 2)
        larger.set(table)
        table = larger
      }
      table[used++] = cursor.first
      table[used++] = cursor.end - cursor.first
    }
    return table.slice(0, used)
  }

  /**
   * Cuts the next batch: fills `out` with runs from `fromPage` on, at most `maxRuns` (and as many as fit into `out`)
   * and at most `maxPages` pages. The last run may be cut short. Continue at `nextPage`.
   */
  fillRunTable(out: RunTable, fromPage: number, maxRuns: number, maxPages: number): FilledRuns {
    const limit = Math.min(maxRuns, runCapacity(out))
    const cursor = this.#cursor(fromPage)
    let nrRuns = 0
    let nrPages = 0
    while (cursor.next(maxPages)) {
      if (nrRuns === limit || nrPages === maxPages) return { nrRuns, nrPages, nextPage: cursor.first }
      const nr = Math.min(cursor.end - cursor.first, maxPages - nrPages)
      out[2 * nrRuns] = cursor.first
      out[2 * nrRuns + 1] = nr
      nrRuns++
      nrPages += nr
      if (cursor.first + nr < cursor.end) return { nrRuns, nrPages, nextPage: cursor.first + nr }
    }
    return { nrRuns, nrPages, nextPage: -1 }
  }

  #cursor(page: number): RunCursor {
    const key = Math.floor(page / chunkPages)
    return new RunCursor(this.#chunks, this.#keys, this.#lowerBound(key), page)
  }

  #combine(other: PageSet, subtract: boolean): this {
    let emptied = false
    for (const key of this.#keys) {
      const mine = this.#chunks.get(key) as Chunk
      const theirs = other.#chunks.get(key)
      const goes = subtract ? theirs === fullChunk : theirs === undefined
      const stays = subtract ? theirs === undefined : theirs === fullChunk
      if (stays) continue
      this.#count -= mine.count
      let count = 0
      if (!goes) {
        const own = this.#writable(key, mine)
        const { words } = theirs as Chunk
        count = subtract ? andNotInto(own.words, words) : andInto(own.words, words)
        own.count = count
        this.#count += count
        if (count === chunkPages) this.#chunks.set(key, fullChunk)
      }
      if (count === 0) {
        this.#chunks.delete(key)
        emptied = true
      }
    }
    if (emptied) this.#dropMissingKeys()
    return this
  }

  #addBits(key: number, from: number, to: number): number {
    const chunk = this.#chunks.get(key)
    if (chunk === fullChunk) return 0
    if (from === 0 && to === chunkPages) {
      if (chunk === undefined) this.#insertKey(key)
      this.#chunks.set(key, fullChunk)
      return chunkPages - (chunk?.count ?? 0)
    }
    if (chunk === undefined) {
      this.#insertKey(key)
      const fresh = { words: new Uint32Array(chunkWords), count: to - from }
      setBits(fresh.words, from, to)
      this.#chunks.set(key, fresh)
      return fresh.count
    }
    const added = setBits(chunk.words, from, to)
    chunk.count += added
    if (chunk.count === chunkPages) this.#chunks.set(key, fullChunk)
    return added
  }

  #writable(key: number, chunk: Chunk): Chunk {
    if (chunk !== fullChunk) return chunk
    const own = { words: fullChunk.words.slice(), count: chunkPages }
    this.#chunks.set(key, own)
    return own
  }

  /** Index of the first chunk number >= key. */
  #lowerBound(key: number): number {
    let low = 0
    let high = this.#keys.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#keys[middle] < key) low = middle + 1
      else high = middle
    }
    return low
  }

  #insertKey(key: number): void {
    const last = this.#keys.length - 1
    if (last < 0 || this.#keys[last] < key) this.#keys.push(key)
    else this.#keys.splice(this.#lowerBound(key), 0, key)
  }

  #dropMissingKeys(): void {
    this.#keys = this.#keys.filter((key) => this.#chunks.has(key))
  }
}

function checkedEnd(first: number, nr: number): number {
  const end = first + nr
  if (!(first >= 0 && nr >= 0 && end <= maxPages && Number.isInteger(first) && Number.isInteger(nr)))
    throw new RangeError(`not a range of pages: ${first}+${nr}`)
  return end
}
