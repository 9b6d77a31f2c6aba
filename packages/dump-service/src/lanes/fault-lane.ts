import type { Worker } from 'node:worker_threads'
import { PageferryError } from '@pageferry/base'
import { startLaneThread } from '@pageferry/service/worker'
import { FaultFeed } from '../lazy/fault-feed.js'
import type { FaultTarget, FaultThreadData, FromFaultThread, ToFaultThread } from './fault-messages.js'

/** `port` 0: any free port. A successor takes the port of its predecessor. */
export type FaultLaneOptions = Omit<FaultThreadData, 'feed'>

export interface FaultLaneEvents {
  onConnected(resumed: boolean): void
  onLost(error: PageferryError): void
}

/**
 * The fault lane, in a thread of its own that listens by itself. So neither sending batches nor their garbage
 * collection comes between a request and its reply.
 */
export class FaultLane {
  readonly #thread: Worker
  readonly #events: FaultLaneEvents
  #listening: { resolve(port: number): void; reject(error: Error): void } | null = null
  /** Counts and faults that the thread reports. */
  readonly feed = new FaultFeed()

  private constructor(options: FaultLaneOptions, events: FaultLaneEvents) {
    this.#events = events
    const workerData: FaultThreadData = { ...options, feed: this.feed.buffer }
    this.#thread = startLaneThread(new URL('./fault-thread.js', import.meta.url), { workerData })
    this.#thread.on('message', (message: FromFaultThread) => this.#on(message))
  }

  /**
   * Starts the thread; `port` is where it listens.
   * @throws as listen(2) does, such as EADDRINUSE
   */
  static async listen(
    options: FaultLaneOptions,
    events: FaultLaneEvents,
  ): Promise<{ lane: FaultLane; port: number }> {
    const lane = new FaultLane(options, events)
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

  serve(target: FaultTarget): void {
    this.#post({ type: 'serve', target })
  }

  /** Turns on or off the compression of replies with several pages. */
  compress(isOn: boolean): void {
    this.#post({ type: 'compress', isOn })
  }

  close(): void {
    void this.#thread.terminate()
  }

  #post(message: ToFaultThread): void {
    this.#thread.postMessage(message)
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
    }
  }
}
