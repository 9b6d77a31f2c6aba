import { performance } from 'node:perf_hooks'
import type { RestoredProcess } from '../process.js'

/** How long something may wait for a moment at which no change is under way. Bursts of them last some milliseconds. */
const patienceMs = 50
/** Of a standstill: threads come back from the kernel in less than one, and the bulk threads get as many batches in. */
const lengthMs = 5
/** Between two while that goes on. */
const pauseMs = 10

/**
 * The kernel lets nobody install a page while a change of the address space is under way. Where a few threads change it
 * all the time, one of them always is in the middle of that (eight that move memory and do nothing else, on two
 * processors: no page in a minute), and a thread that waits for a page would wait for them to end. So the process is held
 * still for a moment now and then: a thread that is let go after its change then stops before it begins the next one.
 */
export class Standstill {
  readonly #process: Pick<RestoredProcess, 'holdStill' | 'thaw'>
  #timer: NodeJS.Timeout | null = null
  #isHeld = false
  /** When the last one ended. */
  #endedAt = Number.NEGATIVE_INFINITY

  constructor(process: Pick<RestoredProcess, 'holdStill' | 'thaw'>) {
    this.#process = process
  }

  /** Something has been waiting since then, as performance.now() says. Begins one, if that is too long. */
  beginAfter(since: number): void {
    if (this.#isHeld) return
    const now = performance.now()
    const isGoingOn = now - this.#endedAt < patienceMs
    if (now - Math.max(since, this.#endedAt) < (isGoingOn ? pauseMs : patienceMs)) return
    this.#isHeld = true
    this.#timer = setTimeout(() => this.end(), lengthMs)
    this.#process.holdStill()
  }

  /** Idempotent, also for a successor of a worker that was killed in the middle of one. */
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
