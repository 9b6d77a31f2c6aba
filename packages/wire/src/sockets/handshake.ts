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

/** Connections that have not said Hello yet, or were refused and are closing. A peer needs one per lane. */
export const maxUnfinished = 32

export interface HandshakeOptions {
  migrationId: string
  token: string
  nrBulkLanes: number
  /** Port at which the fault lane is dialled; part of Welcome. */
  faultPort: number
  /** Lanes that are accepted. Others are refused: another thread listens for them. */
  kinds: readonly LaneKind[]
  /** Terms for the destination, as far as it supports them. */
  terms?: LaneTerms
  onLane(lane: Lane, resumed: boolean): void
}

/**
 * The source's half of the handshake: checks Hello, answers Welcome or Refusal, and makes a lane of the connection.
 * `dial` is the other half.
 */
export class Handshake {
  readonly #wss: WebSocketServer
  readonly #options: HandshakeOptions
  readonly #lanes = new Map<string, Lane>()
  readonly #unfinished = new Set<WebSocket>()

  constructor(options: HandshakeOptions) {
    this.#options = options
    // The largest limit of the three lanes: Hello says which lane it is, and the lane checks each frame.
    this.#wss = new WebSocketServer({ noServer: true, ...webSocketOptions('control', 'to-source') })
  }

  /** A connection asks to become a WebSocket. `head`: bytes that came behind the request. */
  upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    this.#wss.handleUpgrade(request, socket, head, (webSocket) => this.#awaitHello(webSocket))
  }

  close(): void {
    for (const lane of this.#lanes.values()) lane.close()
    for (const socket of this.#unfinished) socket.terminate()
    this.#wss.close()
  }

  #awaitHello(socket: WebSocket): void {
    if (this.#unfinished.size >= maxUnfinished) {
      socket.terminate()
      return
    }
    this.#unfinished.add(socket)
    const timer = setTimeout(() => {
      const error = new WireError('HELLO_TIMEOUT', 'no Hello arrived')
      socket.close(error.closeCode, closeReason(error.message))
    }, helloTimeoutMs)
    socket.once('close', () => {
      clearTimeout(timer)
      this.#unfinished.delete(socket)
    })
    // ws closes the connection itself, with a code that names the fault.
    socket.on('error', () => {})
    socket.once('message', (data: Buffer, isBinary: boolean) => {
      clearTimeout(timer)
      // Frames behind the Hello wait until the lane has its handlers.
      socket.pause()
      try {
        mustBeBinary(isBinary)
        this.#accept(socket, data)
        this.#unfinished.delete(socket)
      } catch (error) {
        socket.resume()
        socket.send(encodeFrame(errorToFrame('refusal', toErrorInfo(error))), { binary: true })
        socket.close(closeCodeOf(error), closeReason(error instanceof Error ? error.message : String(error)))
      }
    })
  }

  #accept(socket: WebSocket, data: Buffer): void {
    const { migrationId, token, nrBulkLanes, faultPort, kinds, terms: wanted = defaultTerms } = this.#options
    const hello = decodeHello(data)
    if (hello.migrationId !== migrationId) {
      throw new PageferryError('NOT_FOUND', `this worker serves another migration than ${hello.migrationId}`)
    }
    if (!tokensEqual(hello.token, token))
      throw new PageferryError('UNAUTHORIZED', 'the migration token is wrong')
    const version = negotiate(hello.versions)
    if (!kinds.includes(hello.lane)) {
      throw new PageferryError('BAD_REQUEST', `the ${hello.lane} lane has another port`)
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
    // The peer knows before us that its old connection is dead. Report its loss before the new lane.
    old?.terminate()
    const terms = agree(hello.compressions, wanted)
    socket.send(encodeFrame({ type: 'welcome', version, nrBulkLanes, faultPort, ...terms }), { binary: true })
    const lane = new Lane(socket, hello.lane, hello.laneIndex, 'to-source', terms)
    this.#lanes.set(key, lane)
    this.#options.onLane(lane, hello.resume)
  }
}
