import { once } from 'node:events'
import { PageferryError } from '@pageferry/base'
import { WebSocket } from 'ws'
import {
  closeCodeOf,
  closeReason,
  type Direction,
  decodeFrame,
  defaultTerms,
  describeCloseCode,
  encodeFrame,
  type Frame,
  type Lane as LaneKind,
  type LaneTerms,
  laneLimits,
  WireError,
} from '../index.js'

/** Silence after which a connection counts as lost. TCP alone notices a dead peer only after many minutes. */
const heartbeatMs = 5_000
const maxMissedHeartbeats = 3
/** How long a peer may take to answer a close frame before its connection is cut: two round trips of a bad link. */
const closeTimeoutMs = 2_000
/** "The purpose for which the connection was established has been fulfilled" (RFC 6455, section 7.4.1). */
const normalClosure = 1000

export interface LaneHandlers {
  /** May throw: the lane is closed with the error's code, and nothing of the frame was applied. */
  onFrame(frame: Frame, payload: Uint8Array): void
  /** Called once, for whatever reason the connection ended. It never means success. */
  onLost(error: PageferryError): void
}

/**
 * Options that both ends pass to ws: no compression (pages would pay for it twice), no message beyond the limit, no
 * connection that lingers because its peer does not answer.
 */
export function webSocketOptions(kind: LaneKind, incoming: Direction) {
  const maxPayload = laneLimits(kind, incoming).messageBytes
  return { perMessageDeflate: false, maxPayload, closeTimeout: closeTimeoutMs } as const
}

/**
 * Refuses text messages, which ws delivers as bytes, too.
 * @throws WireError MALFORMED: frames are binary
 */
export function mustBeBinary(isBinary: boolean): void {
  if (!isBinary) throw new WireError('MALFORMED', 'a text message is not a frame')
}

/** One connection of a migration after its Hello: frames in and out. */
export class Lane {
  readonly kind: LaneKind
  readonly index: number
  readonly terms: LaneTerms
  bytesSent = 0
  bytesReceived = 0
  readonly #socket: WebSocket
  readonly #incoming: Direction
  /**
   * Messages from before `open`: ws delivers everything of a chunk that it has read, even when paused. That is one
   * chunk at most, because the socket is paused. They are copies: the original buffer may be reused.
   */
  readonly #early: { data: Buffer; isBinary: boolean }[] = []
  #handlers: LaneHandlers | null = null
  #lost: PageferryError | null = null
  #isDone = false
  #missed = 0
  readonly #heartbeat: NodeJS.Timeout

  /** @param terms of its handshake */
  constructor(
    socket: WebSocket,
    kind: LaneKind,
    index: number,
    incoming: Direction,
    terms: LaneTerms = defaultTerms,
  ) {
    this.#socket = socket
    this.kind = kind
    this.index = index
    this.terms = terms
    this.#incoming = incoming
    socket.on('message', (data: Buffer, isBinary: boolean) => {
      if (this.#handlers === null || this.#early.length > 0)
        this.#early.push({ data: Buffer.from(data), isBinary })
      else this.#receive(data, isBinary)
    })
    socket.on('close', (code: number, reason: Buffer) => {
      this.#isDone = code === normalClosure
      this.#lose(new PageferryError('PEER_UNREACHABLE', `${this}: closed: ${describe(code, reason)}`))
    })
    socket.on('error', (error: Error) => {
      this.#lose(new PageferryError('PEER_UNREACHABLE', `${this}: ${error.message}`, { cause: error }))
    })
    socket.on('pong', () => {
      this.#missed = 0
    })
    this.#heartbeat = setInterval(() => this.#beat(), heartbeatMs)
    this.#heartbeat.unref()
  }

  /** Begins to read, after the caller's turn. Frames that came before are not lost. */
  open(handlers: LaneHandlers): void {
    this.#handlers = handlers
    if (this.#lost !== null) handlers.onLost(this.#lost)
    else if (this.#early.length === 0) this.#socket.resume()
    else setImmediate(() => this.#catchUp())
  }

  #catchUp(): void {
    for (const { data, isBinary } of this.#early) this.#receive(data, isBinary)
    this.#early.length = 0
    this.#socket.resume()
  }

  pause(): void {
    this.#socket.pause()
  }

  resume(): void {
    this.#socket.resume()
  }

  get isOpen(): boolean {
    return this.#lost === null && this.#socket.readyState === WebSocket.OPEN
  }

  /** The lane was closed on purpose: the peer has sent everything, and has received everything that it waited for. */
  get isDone(): boolean {
    return this.#isDone
  }

  /** Drops the frame silently when the lane is lost. A sender that needs an answer is told of the loss. */
  send(frame: Frame, payload?: Uint8Array, done?: () => void): void {
    this.sendBytes(encodeFrame(frame, payload), done)
  }

  /** `message` must not be reused before `done` was called. */
  sendBytes(message: Uint8Array, done?: () => void): void {
    if (!this.isOpen) {
      done?.()
      return
    }
    this.bytesSent += message.length
    this.#socket.send(message, { binary: true }, () => done?.())
  }

  /** Closes with the code that tells the peer the reason. */
  close(error?: unknown): void {
    if (error === undefined) this.#socket.close(normalClosure)
    else {
      const text = error instanceof Error ? error.message : String(error)
      this.#socket.close(closeCodeOf(error), closeReason(text))
    }
  }

  /**
   * Cuts the connection without a closing handshake, for a peer that does not answer. The lane is lost when this
   * returns.
   */
  terminate(): void {
    this.#socket.terminate()
    this.#lose(new PageferryError('PEER_UNREACHABLE', `${this}: cut off`))
  }

  async closed(): Promise<void> {
    if (this.#socket.readyState !== WebSocket.CLOSED) await once(this.#socket, 'close')
  }

  #receive(data: Buffer, isBinary: boolean): void {
    // After a frame that closed the lane, ws delivers messages that it has read already.
    if (this.#lost !== null) return
    this.bytesReceived += data.length
    this.#missed = 0
    try {
      mustBeBinary(isBinary)
      const { frame, payload } = decodeFrame(data, this.kind, this.#incoming)
      this.#checkCompression(frame)
      this.#handlers?.onFrame(frame, payload)
    } catch (error) {
      this.close(error)
      const cause = error instanceof Error ? error.message : String(error)
      this.#lose(
        error instanceof PageferryError
          ? error
          : new PageferryError('INTERNAL', `${this}: ${cause}`, { cause: error }),
      )
    }
  }

  #checkCompression(frame: Frame): void {
    if ((frame.type !== 'pageBatch' && frame.type !== 'pageReply') || frame.zstdBytes === 0) return
    if (this.terms.compression === 'zstd') return
    throw new WireError('BAD_VALUE', `${frame.type}.zstdBytes on a connection without compression`)
  }

  #beat(): void {
    if (this.#missed++ >= maxMissedHeartbeats) this.#socket.terminate()
    else if (this.#socket.readyState === WebSocket.OPEN) this.#socket.ping()
  }

  #lose(error: PageferryError): void {
    if (this.#lost !== null) return
    this.#lost = error
    clearInterval(this.#heartbeat)
    this.#handlers?.onLost(error)
  }

  toString(): string {
    return this.kind === 'bulk' ? `bulk lane ${this.index}` : `${this.kind} lane`
  }
}

function describe(code: number, reason: Buffer): string {
  const known = describeCloseCode(code)
  const name = known === undefined ? `code ${code}` : known.name
  const text = reason.toString()
  return text === '' ? name : `${name} (${text})`
}
