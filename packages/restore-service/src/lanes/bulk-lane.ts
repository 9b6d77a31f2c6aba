import { availableParallelism } from 'node:os'
import { MessageChannel, type MessagePort, type Worker } from 'node:worker_threads'
import { PageferryError, toErrorInfo } from '@pageferry/base'
import { startLaneThread } from '@pageferry/service/worker'
import type { DialOptions } from '@pageferry/wire/sockets'
import type { FromBulkThread, Pushed, Target, ToBulkThread } from './bulk-messages.js'

export interface BulkLaneEvents {
  /** A batch of a round is in the skeleton. */
  onInstalled(round: number, pages: number): void
  onPushed(batch: Pushed): void
  onLost(error: PageferryError): void
}

/**
 * Threads that receive and install what bulk lanes bring. No more than there are processors: each takes some 20 MiB, and
 * two on one processor are slower than one.
 */
export class BulkThreads {
  readonly #threads: Worker[] = []

  /** The worker's end of a new lane. */
  openLane(index: number): MessagePort {
    const thread = index % availableParallelism()
    this.#threads[thread] ??= startLaneThread(new URL('./bulk-thread.js', import.meta.url))
    const { port1, port2 } = new MessageChannel()
    this.#threads[thread].postMessage(port2, [port2])
    return port1
  }
}

/** One bulk lane, as the worker sees it. */
export class BulkLane {
  readonly index: number
  readonly #port: MessagePort
  readonly #events: BulkLaneEvents
  #dialling: { resolve(): void; reject(error: Error): void } | null = null

  constructor(index: number, threads: BulkThreads, events: BulkLaneEvents) {
    this.index = index
    this.#events = events
    this.#port = threads.openLane(index)
    this.#port.on('message', (messages: FromBulkThread[]) => {
      for (const message of messages) this.#on(message)
    })
  }

  /** @throws as `dial` does */
  dial(options: DialOptions): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#dialling = { resolve, reject }
      this.#post({ type: 'dial', options })
    })
  }

  /** From here on what the lane brings goes there. */
  open(target: Target): void {
    this.#post({ type: 'open', target })
  }

  /** What the lane brings waits for the next `open`. */
  close(): void {
    this.#post({ type: 'close' })
  }

  /** A batch that came with its pages: they are where they belong, the source may send more. */
  taken({ sequence }: Pushed, bytes: number): void {
    this.#post({ type: 'taken', sequence, bytes })
  }

  /** The peer broke the protocol in a way that shows only here. */
  refuse(error: unknown): void {
    this.#post({ type: 'refuse', error: toErrorInfo(error) })
  }

  #post(message: ToBulkThread): void {
    this.#port.postMessage(message)
  }

  #on(message: FromBulkThread): void {
    switch (message.type) {
      case 'dialled':
        this.#dialling?.resolve()
        return
      case 'notDialled':
        this.#dialling?.reject(PageferryError.fromInfo(message.error))
        return
      case 'lost':
        this.#events.onLost(PageferryError.fromInfo(message.error))
        return
      case 'installed':
        this.#events.onInstalled(message.round, message.pages)
        return
      case 'pushed':
        this.#events.onPushed(message.batch)
    }
  }
}
