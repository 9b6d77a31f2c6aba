import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import type { Worker } from 'node:worker_threads'
import { Batcher, PageferryError } from '@pageferry/base'
import { fds } from '@pageferry/kernel'
import { startLaneThread } from '@pageferry/service/worker'
import type { CompressionCounts } from '@pageferry/wire'
import type { UpgradeRequest } from '@pageferry/wire/sockets'
import type { FaultEvents } from '../lazy/fault-server.js'
import type { FaultTarget, FaultThreadData, FromFaultThread, ToFaultThread } from './fault-messages.js'

/** What is asked for ahead meanwhile may be sent twice. */
const pushedDelayMs = 4

export interface FaultLaneEvents extends FaultEvents {
  onConnected(resumed: boolean): void
  onLost(error: PageferryError): void
}

/**
 * The fault lane, in a thread of its own: no batch that is read and sent, and no garbage collection of whoever does
 * that, comes between a request and its reply.
 */
export class FaultLane {
  readonly #thread: Worker
  readonly #events: FaultLaneEvents
  readonly #pushed = new Batcher<ToFaultThread>(pushedDelayMs, (messages) =>
    this.#thread.postMessage(messages),
  )
  #bytesSent = 0
  #compressed: CompressionCounts = { pages: 0, bytes: 0 }

  constructor(data: FaultThreadData, events: FaultLaneEvents) {
    this.#events = events
    this.#thread = startLaneThread(new URL('./fault-thread.js', import.meta.url), { workerData: data })
    this.#thread.on('message', (message: FromFaultThread) => this.#on(message))
  }

  /** As of the last page that was asked for. */
  get bytesSent(): number {
    return this.#bytesSent
  }

  get compressed(): CompressionCounts {
    return this.#compressed
  }

  /** A connection for this lane. The thread gets a descriptor of its own, and this socket is forgotten. */
  upgrade({ method, url, headers }: UpgradeRequest, socket: Duplex, head: Buffer): void {
    // Node has no public way to give a connection to a thread, and none to learn its descriptor.
    const { fd } = (socket as Socket & { _handle: { fd: number } })._handle
    this.#post({
      type: 'upgrade',
      fd: fds.dup(fd),
      request: { method, url, headers },
      head: Uint8Array.from(head),
    })
    // Closes a descriptor, not the connection: nobody called shutdown(2).
    socket.destroy()
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
