import { availableParallelism } from 'node:os'
import { MessageChannel, type MessagePort, type Worker } from 'node:worker_threads'
import { PageferryError, toErrorInfo } from '@pageferry/base'
import { startLaneThread } from '@pageferry/service/worker'
import type { DialOptions } from '@pageferry/wire/sockets'
import type {
  FromBulkThread,
  LazyTarget,
  Pushed,
  RoundTarget,
  Target,
  ToBulkThread,
} from './bulk-messages.js'

/**
 * Is told of each batch of a round, once it is in the skeleton. May throw: its lane is closed with the error's code.
 */
export interface RoundBatches {
  onInstalled(lane: number, round: number, pages: number): void
}

/** Is told of each pushed batch, once its thread has installed what it can. May throw, likewise. */
export interface PushedBatches {
  onPushed(batch: Pushed): void
}

/**
 * The bulk lanes as the worker sees them. Their threads receive, decompress and install. The worker gets each batch
 * once, as a message that goes straight to the receiver that came with the target.
 */
export class BulkLanes {
  readonly #onLost: (index: number, error: PageferryError) => void
  readonly #lanes: BulkLane[] = []
  /** At most one thread per processor: each takes some 20 MiB, and two on one processor are slower than one. */
  readonly #threads: Worker[] = []
  #target: Target | null = null
  #rounds: RoundBatches | null = null
  #lazy: PushedBatches | null = null

  constructor(onLost: (index: number, error: PageferryError) => void) {
    this.#onLost = onLost
  }

  /** @throws as `dial` of wire does */
  dial(options: DialOptions): Promise<void> {
    this.#lanes[options.index] ??= this.#newLane(options.index)
    return this.#lanes[options.index].dial(options)
  }

  /** Batches of this round go into the skeleton. */
  openRound(target: RoundTarget, batches: RoundBatches): void {
    this.#rounds = batches
    this.#open(target)
  }

  /** Pushed batches go into the running workload. */
  openLazy(target: LazyTarget, batches: PushedBatches): void {
    this.#lazy = batches
    this.#open(target)
  }

  #open(target: Target): void {
    this.#target = target
    for (const lane of this.#lanes) lane?.post({ type: 'open', target })
  }

  /** Makes batches wait for the next target. */
  close(): void {
    this.#target = null
    for (const lane of this.#lanes) lane?.post({ type: 'close' })
  }

  #newLane(index: number): BulkLane {
    const { port1, port2 } = new MessageChannel()
    const thread = index % availableParallelism()
    this.#threads[thread] ??= startLaneThread(new URL('./bulk-thread.js', import.meta.url))
    this.#threads[thread].postMessage(port2, [port2])
    const lane = new BulkLane(port1, (message) => this.#on(index, lane, message))
    if (this.#target !== null) lane.post({ type: 'open', target: this.#target })
    return lane
  }

  #on(index: number, lane: BulkLane, message: FromBulkThread): void {
    switch (message.type) {
      case 'installed':
        if (this.#rounds === null) throw new PageferryError('PROTOCOL', 'a batch of a round without a target')
        this.#rounds.onInstalled(index, message.round, message.pages)
        return
      case 'pushed': {
        const { batch } = message
        this.#lazy?.onPushed(batch)
        // The batch came with its pages, which are installed now: the source may send more.
        if (batch.payload !== undefined) {
          lane.post({ type: 'taken', sequence: batch.sequence, bytes: batch.payload.length })
        }
        return
      }
      case 'lost':
        this.#onLost(index, PageferryError.fromInfo(message.error))
    }
  }
}

/** The worker's end of one lane. */
class BulkLane {
  readonly #port: MessagePort
  #dialling: { resolve(): void; reject(error: Error): void } | null = null

  /** @param on may throw: the lane is closed with the error's code */
  constructor(port: MessagePort, on: (message: FromBulkThread) => void) {
    this.#port = port
    port.on('message', (messages: FromBulkThread[]) => {
      for (const message of messages) {
        if (message.type === 'dialled') this.#dialling?.resolve()
        else if (message.type === 'notDialled') {
          this.#dialling?.reject(PageferryError.fromInfo(message.error))
        } else {
          try {
            on(message)
          } catch (error) {
            // The peer broke the protocol in a way that only the worker can see.
            this.post({ type: 'refuse', error: toErrorInfo(error) })
          }
        }
      }
    })
  }

  dial(options: DialOptions): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#dialling = { resolve, reject }
      this.post({ type: 'dial', options })
    })
  }

  post(message: ToBulkThread): void {
    this.#port.postMessage(message)
  }
}
