import { performance } from 'node:perf_hooks'
import type { RestoredProcess } from '../process.js'

/** How long a page may wait for a moment without a change under way. Bursts of changes last some milliseconds. */
const patienceMs = 50
/**
 * Length of a standstill. Threads return from the kernel in under a millisecond; the bulk threads install batches
 * meanwhile.
 */
const lengthMs = 5
/** Pause between two standstills in a row. */
const pauseMs = 10

/**
 * Lets pages in when the workload changes its address space all the time. The kernel refuses every installation while a
 * change is under way. With a few threads that only move memory, a change always is: eight of them on two processors
 * let no page in for a minute. A thread that waits for a page would wait until they end. So the process is held still
 * for a moment now and then: each thread stops after its change, before it begins the next one.
 */
export class Standstill {
  readonly #process: Pick<RestoredProcess, 'holdStill' | 'thaw'>
  #timer: NodeJS.Timeout | null = null
  #isHeld = false
  /** When the last standstill ended. */
  #endedAt = Number.NEGATIVE_INFINITY

  constructor(process: Pick<RestoredProcess, 'holdStill' | 'thaw'>) {
    this.#process = process
  }

  /** Begins a standstill if something has been waiting too long, since the given performance.now(). */
  beginAfter(since: number): void {
    if (this.#isHeld) return
    const now = performance.now()
    const isGoingOn = now - this.#endedAt < patienceMs
    if (now - Math.max(since, this.#endedAt) < (isGoingOn ? pauseMs : patienceMs)) return
    this.#isHeld = true
    this.#timer = setTimeout(() => this.end(), lengthMs)
    this.#process.holdStill()
  }

  /** Idempotent, also for a successor of a worker that was killed during a standstill. */
  end(): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    this.#isHeld = false
    this.#endedAt = performance.now()
    this.#process.thaw()
  }

  get isHeld(): boolean {
    return this.#isHeld
  }
}
