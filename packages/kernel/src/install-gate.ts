import { performance } from 'node:perf_hooks'
import { addon } from './addon.js'

interface Native {
  format(area: Uint8Array, nrChunks: number): void
  close(area: Uint8Array): void
  install(
    area: Uint8Array,
    fd: number,
    runs: Float64Array,
    nrRuns: number,
    data: Uint8Array | undefined,
    from: number,
    counts: Float64Array,
  ): number
}

const native = addon.gate as Native

/**
 * As in native/gate.c: pages of a chunk, its 32-bit words, words of the head, and the places of `others` and `starving`
 * there.
 */
const chunkPages = 32_768
const chunkWords = chunkPages / 32
const headWords = 16
const othersAt = 6
const starvingAt = 8
/** How long `install` may make no progress before it reports that, in milliseconds. */
const patienceMs = 50

/** Results of `install` that are no page number. */
const closed = -1
const again = -2

export interface GateOutcome {
  /** Pages that were missing and are installed now. */
  installed: number
  /** Pages outside every registered area: the map changed without an event, or the peer made them up. */
  lost: number[]
  /** The gate was closed, or the address space is gone. */
  isClosed: boolean
}

/**
 * Lets several threads install pages through one userfaultfd while one thread reads its events. native/gate.h describes
 * the race that it prevents. The gate is open for the pages it was created with until an event names them. Then only
 * the thread that reads the events may install them.
 *
 * It is a view of a SharedArrayBuffer, which is how other threads get it.
 */
export class InstallGate {
  readonly buffer: SharedArrayBuffer
  /** The argument for `eventJournal.read`. */
  readonly area: Uint8Array
  readonly #words: Uint32Array

  constructor(buffer: SharedArrayBuffer) {
    this.buffer = buffer
    this.area = new Uint8Array(buffer)
    this.#words = new Uint32Array(buffer)
  }

  /** @param runs pages that lie at their source address; 4 KiB of memory for each 128 MiB that contain any */
  static create(runs: Float64Array): InstallGate {
    const keys = new Set<number>()
    for (let r = 0; r < runs.length; r += 2) {
      const last = Math.floor((runs[r] + runs[r + 1] - 1) / chunkPages)
      for (let key = Math.floor(runs[r] / chunkPages); key <= last; key++) keys.add(key)
    }
    const sorted = [...keys].sort((a, b) => a - b)
    const gate = new InstallGate(new SharedArrayBuffer(4 * (headWords + sorted.length * (1 + chunkWords))))
    native.format(gate.area, sorted.length)
    gate.#words.set(sorted, headWords)
    for (let r = 0; r < runs.length; r += 2) gate.#openRange(runs[r], runs[r + 1])
    return gate
  }

  get #nrChunks(): number {
    return this.#words[1]
  }

  /** Index of the first word of a page's chunk; -1 when there is none. */
  #chunkOf(page: number): number {
    const key = Math.floor(page / chunkPages)
    let low = 0
    let high = this.#nrChunks
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#words[headWords + middle] < key) low = middle + 1
      else high = middle
    }
    if (low === this.#nrChunks || this.#words[headWords + low] !== key) return -1
    return headWords + this.#nrChunks + low * chunkWords
  }

  #openRange(first: number, nr: number): void {
    for (let page = first; page < first + nr; ) {
      const chunk = this.#chunkOf(page)
      let bit = page % chunkPages
      const end = Math.min(chunkPages, bit + first + nr - page)
      page += end - bit
      while (bit < end) {
        if (bit % 32 === 0 && end - bit >= 32) {
          this.#words[chunk + (bit >>> 5)] = 0xffff_ffff
          bit += 32
        } else {
          this.#words[chunk + (bit >>> 5)] |= 1 << (bit & 31)
          bit++
        }
      }
    }
  }

  /** Calls back with the open parts of first .. first+nr-1. Only for the thread that reads the events. */
  forEachOpen(first: number, nr: number, callback: (first: number, nr: number) => void): void {
    let start = -1
    let chunk = -1
    for (let page = first; page < first + nr; page++) {
      const bit = page % chunkPages
      if (page === first || bit === 0) chunk = this.#chunkOf(page)
      const isOpen = chunk >= 0 && (this.#words[chunk + (bit >>> 5)] & (1 << (bit & 31))) !== 0
      if (isOpen && start < 0) start = page
      else if (!isOpen && start >= 0) {
        callback(start, page - start)
        start = -1
      }
    }
    if (start >= 0) callback(start, first + nr - start)
  }

  /** Only the thread that reads the events can install some pages: those of children, or pages that have moved. */
  get hasOthers(): boolean {
    return Atomics.load(this.#words, othersAt) !== 0
  }

  noteOthers(): void {
    Atomics.store(this.#words, othersAt, 1)
  }

  /** Returns true once after an installer made no progress for long, because the address space changes all the time. */
  takeStarving(): boolean {
    return Atomics.exchange(this.#words, starvingAt, 0) !== 0
  }

  /**
   * When this returns, no thread installs through the gate, now or later. Called by the thread that reads the events.
   */
  close(): void {
    native.close(this.area)
  }

  /**
   * Installs pages, on any thread but the one that reads the events; it may wait for that one. Waiting threads are
   * woken; existing pages are kept.
   * @param data the pages of the table, one behind the other; undefined: zeros
   */
  install(uffd: number, runs: Float64Array, data: Uint8Array | undefined): GateOutcome {
    const counts = new Float64Array(2)
    const lost: number[] = []
    let nrPages = 0
    for (let r = 0; r < runs.length; r += 2) nrPages += runs[r + 1]
    let from = 0
    let wentOnAt = performance.now()
    for (;;) {
      const end = native.install(this.area, uffd, runs, runs.length >> 1, data, from, counts)
      if (end === closed || end === nrPages) return { installed: counts[0], lost, isClosed: end === closed }
      if (end === again) {
        const now = performance.now()
        if (counts[1] > from) wentOnAt = now
        else if (now - wentOnAt > patienceMs) Atomics.store(this.#words, starvingAt, 1)
        from = counts[1]
      } else {
        lost.push(pageAt(runs, end))
        from = end + 1
      }
    }
  }
}

/** Page number `index` of a run table. */
function pageAt(runs: Float64Array, index: number): number {
  let r = 0
  while (index >= runs[r + 1]) {
    index -= runs[r + 1]
    r += 2
  }
  return runs[r] + index
}
