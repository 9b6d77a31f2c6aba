import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { PageferryError, toErrorInfo } from '@pageferry/base'
import { Lane, mustBeBinary, tokensEqual, webSocketOptions } from '@pageferry/service/worker'
import {
  closeCodeOf,
  closeReason,
  decodeHello,
  encodeFrame,
  errorToFrame,
  helloTimeoutMs,
  negotiate,
  WireError,
} from '@pageferry/wire'
import { type WebSocket, WebSocketServer } from 'ws'

/** Connections that have not said Hello yet, or were refused and are closing; a peer needs one per lane. */
const maxGreeting = 32
/** How often connections are looked for that say nothing at all, not even a line of HTTP. */
const silenceCheckMs = 1_000

export interface LaneServerOptions {
  host: string
  /** 0: any; a successor takes the port of its predecessor. */
  port: number
  migrationId: string
  token: string
  nrBulkLanes: number
  onLane(lane: Lane, resumed: boolean): void
}

/** Accepts the destination's connections: checks Hello, answers Welcome or Refusal, hands the lane over. */
export class LaneServer {
  readonly #http: Server
  readonly #wss: WebSocketServer
  readonly #options: LaneServerOptions
  readonly #lanes = new Map<string, Lane>()
  readonly #greeting = new Set<WebSocket>()

  private constructor(options: LaneServerOptions) {
    this.#options = options
    this.#http = createServer(
      { headersTimeout: helloTimeoutMs, connectionsCheckingInterval: silenceCheckMs },
      (_request, response) => response.writeHead(426).end(),
    )
    // Every lane twice: its dead connection may still be there when the peer comes back.
    this.#http.maxConnections = maxGreeting + 2 * (options.nrBulkLanes + 2)
    // The largest of the three: which lane a connection becomes is known after its Hello, and checked then.
    this.#wss = new WebSocketServer({ server: this.#http, ...webSocketOptions('control', 'to-source') })
    this.#wss.on('connection', (socket) => this.#greet(socket))
  }

  static async listen(options: LaneServerOptions): Promise<LaneServer> {
    const server = new LaneServer(options)
    await new Promise<void>((resolve, reject) => {
      server.#http.once('error', reject)
      server.#http.listen(options.port, options.host, resolve)
    })
    return server
  }

  get port(): number {
    return (this.#http.address() as AddressInfo).port
  }

  get url(): string {
    return `ws://${this.#options.host}:${this.port}`
  }

  close(): void {
    for (const lane of this.#lanes.values()) lane.close()
    for (const socket of this.#greeting) socket.terminate()
    this.#wss.close()
    this.#http.close()
    this.#http.closeAllConnections()
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
    const { migrationId, token, nrBulkLanes } = this.#options
    const hello = decodeHello(data)
    if (hello.migrationId !== migrationId) {
      throw new PageferryError('NOT_FOUND', `this worker serves another migration than ${hello.migrationId}`)
    }
    if (!tokensEqual(hello.token, token))
      throw new PageferryError('UNAUTHORIZED', 'the migration token is wrong')
    const version = negotiate(hello.versions)
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
    socket.send(encodeFrame({ type: 'welcome', version, nrBulkLanes }), { binary: true })
    const lane = new Lane(socket, hello.lane, hello.laneIndex, 'to-source')
    this.#lanes.set(key, lane)
    this.#options.onLane(lane, hello.resume)
  }
}
