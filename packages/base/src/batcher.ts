/**
 * Batches messages that can wait. A message for each of them would wake a thread each time, and take the processor from
 * their receiver. Bounded by the number that `delayMs` allows.
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

  /** Delivers the item `delayMs` after the first one that waits, in order. */
  add(item: T): void {
    this.#items.push(item)
    this.#timer ??= setTimeout(() => this.#tell(this.take()), this.#delayMs)
  }

  /** Returns all waiting items, for the caller to deliver before a message that cannot wait. */
  take(): T[] {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    const items = this.#items
    this.#items = []
    return items
  }
}
