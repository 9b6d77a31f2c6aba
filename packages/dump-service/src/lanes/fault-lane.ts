import type { Worker } from 'node:worker_threads'
import { Batcher, PageferryError } from '@pageferry/base'
import { startLaneThread } from '@pageferry/service/worker'
import type { CompressionCounts } from '@pageferry/wire'
import type { FaultEvents } from '../lazy/fault-server.js'
import type { FaultTarget, FaultThreadData, FromFaultThread, ToFaultThread } from './fault-messages.js'

/** What is asked for ahead meanwhile may be sent twice. */
const pushedDelayMs = 4

export interface FaultLaneEvents extends FaultEvents {
  onConnected(resumed: boolean): void
  onLost(error: PageferryError): void
}

/**
 * The fault lane, in a thread of its own that listens by itself. No batch that is read and sent, and no garbage collection
 * that batches cause, comes between a request and its reply.
 */
export class FaultLane {
  readonly #thread: Worker
  readonly #events: FaultLaneEvents
  #listening: { resolve(port: number): void; reject(error: Error): void } | null = null
  readonly #pushed = new Batcher<ToFaultThread>(pushedDelayMs, (messages) =>
    this.#thread.postMessage(messages),
  )
  #bytesSent = 0
  #compressed: CompressionCounts = { pages: 0, bytes: 0 }

  private constructor(data: FaultThreadData, events: FaultLaneEvents) {
    this.#events = events
    this.#thread = startLaneThread(new URL('./fault-thread.js', import.meta.url), { workerData: data })
    this.#thread.on('message', (message: FromFaultThread) => this.#on(message))
  }

  /**
   * Starts the thread; `port` is where it listens.
   * @throws as listen(2) does, such as EADDRINUSE
   */
  static async listen(
    data: FaultThreadData,
    events: FaultLaneEvents,
  ): Promise<{ lane: FaultLane; port: number }> {
    const lane = new FaultLane(data, events)
    try {
      const port = await new Promise<number>((resolve, reject) => {
        lane.#listening = { resolve, reject }
      })
      return { lane, port }
    } catch (error) {
      lane.close()
      throw error
    }
  }

  /** As of the last page that was asked for. */
  get bytesSent(): number {
    return this.#bytesSent
  }

  get compressed(): CompressionCounts {
    return this.#compressed
  }

  serve(target: FaultTarget): void {
    this.#post({ type: 'serve', target })
  }

  /** These are being pushed: asked for ahead of a fault, they need not be sent twice. */
  notePushed(runs: Float64Array): void {
    this.#pushed.add({ type: 'pushed', runs })
  }

  /** They were, and did not arrive. */
  noteLost(runs: Float64Array): void {
    this.#post({ type: 'lost', runs })
  }

  /** Replies of several pages, from here on. */
  compress(isOn: boolean): void {
    this.#post({ type: 'compress', isOn })
  }

  close(): void {
    this.#pushed.take()
    void this.#thread.terminate()
  }

  #post(message: ToFaultThread): void {
    this.#thread.postMessage([...this.#pushed.take(), message])
  }

  #on(message: FromFaultThread): void {
    switch (message.type) {
      case 'listening':
        this.#listening?.resolve(message.port)
        return
      case 'notListening':
        this.#listening?.reject(PageferryError.fromInfo(message.error))
        return
      case 'connected':
        this.#events.onConnected(message.resumed)
        return
      case 'lost':
        this.#events.onLost(PageferryError.fromInfo(message.error))
        return
      case 'served':
        this.#bytesSent = message.bytesSent
        this.#compressed = message.compressed
        for (let i = 0; i < message.pages.length; i += 2) {
          this.#events.onServed(message.pages[i], message.pages[i + 1])
        }
        return
      case 'discarded':
        this.#events.onDiscarded(message.runs)
    }
  }
}
