import { type Frame, type FrameOf, WireError } from '@pageferry/wire'
import type { Lane } from '@pageferry/wire/sockets'
import { PageDecoder } from '@pageferry/wire/sockets'

/** Receives the replies of the fault lane. */
export interface FaultReceiver {
  /**
   * May throw: the lane is closed with the error's code.
   * @param pages the pages of `frame.runs`, one behind the other; the next reply overwrites them
   */
  onReply(frame: FrameOf<'pageReply'>, pages: Uint8Array): void
  /** A connection is up, the first or a new one. Replies to earlier requests may be lost. */
  onUp(): void
}

/**
 * The fault lane, over all its connections: requests leave here and replies enter here. It lives on the thread that
 * reads the userfaultfd events, so that a reply is installed in the turn in which it arrives.
 */
export class FaultLane {
  readonly #decoder = new PageDecoder()
  #lane: Lane | null = null
  #receiver: FaultReceiver | null = null

  get isOpen(): boolean {
    return this.#lane?.isOpen === true
  }

  /** Drops the frame while there is no connection: `onUp` says when to ask again. */
  send(frame: Frame): void {
    this.#lane?.send(frame)
  }

  /** Starts the lazy phase: replies go to the receiver from here on. No page was requested before. */
  receive(receiver: FaultReceiver): void {
    this.#receiver = receiver
    if (this.#lane !== null) receiver.onUp()
  }

  /** Called by DestinationLanes with a new connection, not opened yet. */
  attach(lane: Lane): void {
    this.#lane = lane
    this.#receiver?.onUp()
  }

  /**
   * Called by DestinationLanes.
   * @throws WireError: nothing of the frame was applied
   */
  onFrame(frame: Frame, payload: Uint8Array): void {
    if (frame.type !== 'pageReply') {
      throw new WireError('OUT_OF_ORDER', `${frame.type} after the handshake of the fault lane`)
    }
    this.#receiver?.onReply(frame, this.#decoder.pagesOf(frame, payload))
  }
}
