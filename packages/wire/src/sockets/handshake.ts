import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import { PageferryError, toErrorInfo, tokensEqual } from '@pageferry/base'
import { type WebSocket, WebSocketServer } from 'ws'
import {
  agree,
  closeCodeOf,
  closeReason,
  decodeHello,
  defaultTerms,
  encodeFrame,
  errorToFrame,
  helloTimeoutMs,
  type Lane as LaneKind,
  type LaneTerms,
  negotiate,
  WireError,
} from '../index.js'
import { Lane, mustBeBinary, webSocketOptions } from './lane.js'

/** Connections that have not said Hello yet, or were refused and are closing; a peer needs one per lane. */
export const maxGreeting = 32

/** What the thread that greets needs to know of an HTTP request for a WebSocket. */
export type UpgradeRequest = Pick<IncomingMessage, 'method' | 'url' | 'headers'>

export interface GreeterOptions {
  migrationId: string
  token: string
  nrBulkLanes: number
  /** Lanes of other kinds are refused: they belong to another thread. */
  kinds: readonly LaneKind[]
  /** As far as the destination can. */
  terms?: LaneTerms
  onLane(lane: Lane, resumed: boolean): void
}

/** Makes lanes of connections: checks Hello, answers Welcome or Refusal, hands the lane over. */
export class LaneGreeter {
  readonly #wss: WebSocketServer
  readonly #options: GreeterOptions
  readonly #lanes = new Map<string, Lane>()
  readonly #greeting = new Set<WebSocket>()

  constructor(options: GreeterOptions) {
    this.#options = options
    // The largest of the three: which lane a connection becomes is known after its Hello, and checked then.
    this.#wss = new WebSocketServer({ noServer: true, ...webSocketOptions('control', 'to-source') })
  }

  /** A connection asks to become a WebSocket; `head`: what it has said already. */
  upgrade(request: UpgradeRequest, socket: Duplex, head: Buffer): void {
    this.#wss.handleUpgrade(request as IncomingMessage, socket, head, (webSocket) => this.#greet(webSocket))
  }

  close(): void {
    for (const lane of this.#lanes.values()) lane.close()
    for (const socket of this.#greeting) socket.terminate()
    this.#wss.close()
  }

  #greet(socket: WebSocket): void {
    if (this.#greeting.size >= maxGreeting) {
      socket.terminate()
      return
    }
    this.#greeting.add(socket)
    const timer = setTimeout(() => {
      const error = new WireError('HELLO_TIMEOUT', 'no Hello arrived')
      socket.close(error.closeCode, closeReason(error.message))
    }, helloTimeoutMs)
    socket.once('close', () => {
      clearTimeout(timer)
      this.#greeting.delete(socket)
    })
    // ws closes the connection itself, with the code of what was wrong.
    socket.on('error', () => {})
    socket.once('message', (data: Buffer, isBinary: boolean) => {
      clearTimeout(timer)
      // What the peer sends behind its Hello waits until the lane has its handlers.
      socket.pause()
      try {
        mustBeBinary(isBinary)
        this.#accept(socket, data)
        this.#greeting.delete(socket)
      } catch (error) {
        socket.resume()
        socket.send(encodeFrame(errorToFrame('refusal', toErrorInfo(error))), { binary: true })
        socket.close(closeCodeOf(error), closeReason(error instanceof Error ? error.message : String(error)))
      }
    })
  }

  #accept(socket: WebSocket, data: Buffer): void {
    const { migrationId, token, nrBulkLanes, kinds, terms: wanted = defaultTerms } = this.#options
    const hello = decodeHello(data)
    if (hello.migrationId !== migrationId) {
      throw new PageferryError('NOT_FOUND', `this worker serves another migration than ${hello.migrationId}`)
    }
    if (!tokensEqual(hello.token, token))
      throw new PageferryError('UNAUTHORIZED', 'the migration token is wrong')
    const version = negotiate(hello.versions)
    if (!kinds.includes(hello.lane)) {
      throw new PageferryError('BAD_REQUEST', `the ${hello.lane} lane is dialled at another path`)
    }
    if (hello.lane === 'bulk' && hello.laneIndex >= nrBulkLanes) {
      throw new PageferryError(
        'BAD_REQUEST',
        `there are ${nrBulkLanes} bulk lanes, not ${hello.laneIndex + 1}`,
      )
    }
    const key = `${hello.lane}:${hello.laneIndex}`
    const old = this.#lanes.get(key)
    if (old?.isOpen === true && !hello.resume) {
      throw new WireError('LANE_TAKEN', `the ${old} is connected already`)
    }
    // The peer knows that its old connection is dead before we do. Its loss is reported before the new lane.
    old?.terminate()
    const terms = agree(hello.compressions, wanted)
    socket.send(encodeFrame({ type: 'welcome', version, nrBulkLanes, ...terms }), { binary: true })
    const lane = new Lane(socket, hello.lane, hello.laneIndex, 'to-source', terms)
    this.#lanes.set(key, lane)
    this.#options.onLane(lane, hello.resume)
  }
}
