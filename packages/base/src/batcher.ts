/**
 * What need not be told at once is told together: to wake a thread for each thing takes the processor from what it is
 * told about. Bounded by what can happen in `delayMs`.
 */
export class Batcher<T> {
  readonly #delayMs: number
  readonly #tell: (items: T[]) => void
  #items: T[] = []
  #timer: NodeJS.Timeout | null = null

  constructor(delayMs: number, tell: (items: T[]) => void) {
    this.#delayMs = delayMs
    this.#tell = tell
  }

  /** Told `delayMs` after the first that waits, in the order in which they came. */
  add(item: T): void {
    this.#items.push(item)
    this.#timer ??= setTimeout(() => this.#tell(this.take()), this.#delayMs)
  }

  /** All that waits: to be told now, by the caller, in front of what cannot wait. */
  take(): T[] {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    const items = this.#items
    this.#items = []
    return items
  }
}
