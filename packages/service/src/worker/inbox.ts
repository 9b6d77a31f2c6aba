import type { Frame, FrameOf } from '@pageferry/wire'

/** Messages for a running step that waits for them, by type. The protocol bounds them: one answer per question. */
export class Inbox {
  readonly #arrived = new Map<string, Frame[]>()
  readonly #waiting = new Map<string, (frame: Frame) => void>()

  put(frame: Frame): void {
    const waiter = this.#waiting.get(frame.type)
    if (waiter !== undefined) {
      this.#waiting.delete(frame.type)
      waiter(frame)
      return
    }
    const queue = this.#arrived.get(frame.type) ?? []
    queue.push(frame)
    this.#arrived.set(frame.type, queue)
  }

  /** Returns the next message of a type; rejects when the signal fires. */
  next<K extends Frame['type']>(type: K, signal: AbortSignal): Promise<FrameOf<K>> {
    if (signal.aborted) return Promise.reject(signal.reason)
    const queued = this.#arrived.get(type)?.shift()
    if (queued !== undefined) return Promise.resolve(queued as FrameOf<K>)
    return new Promise((resolve, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason), { once: true })
      this.#waiting.set(type, (frame) => resolve(frame as FrameOf<K>))
    })
  }
}
