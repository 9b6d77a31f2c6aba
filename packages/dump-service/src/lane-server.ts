import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { PageferryError, toErrorInfo } from '@pageferry/base'
import { Lane, tokensEqual, webSocketOptions } from '@pageferry/service/worker'
import {
  closeCodeOf,
  decodeHello,
  encodeFrame,
  errorToFrame,
  helloTimeoutMs,
  laneLimits,
  maxHelloBytes,
  negotiate,
  WireError,
} from '@pageferry/wire'
import { type WebSocket, WebSocketServer } from 'ws'

/** Connections that have not said Hello yet; a peer needs one per lane. */
const maxGreeting = 32

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
  #greeting = 0

  private constructor(options: LaneServerOptions) {
    this.#options = options
    this.#http = createServer((_request, response) => response.writeHead(426).end())
    const biggest = laneLimits('bulk', 'to-source').messageBytes
    this.#wss = new WebSocketServer({
      server: this.#http,
      perMessageDeflate: false,
      maxPayload: Math.max(maxHelloBytes, biggest, webSocketOptions('control', 'to-source').maxPayload),
      clientTracking: true,
    })
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
    this.#wss.close()
    this.#http.close()
  }

  #greet(socket: WebSocket): void {
    if (this.#greeting >= maxGreeting) {
      socket.terminate()
      return
    }
    this.#greeting++
    const timer = setTimeout(() => {
      const error = new WireError('HELLO_TIMEOUT', 'no Hello arrived')
      socket.close(error.closeCode, error.message)
    }, helloTimeoutMs)
    const done = (): void => {
      clearTimeout(timer)
      this.#greeting--
    }
    socket.once('close', done)
    socket.on('error', () => socket.terminate())
    socket.once('message', (data: Buffer) => {
      socket.off('close', done)
      done()
      // What the peer sends behind its Hello waits until the lane has its handlers.
      socket.pause()
      try {
        this.#accept(socket, data)
      } catch (error) {
        socket.resume()
        socket.send(encodeFrame(errorToFrame('refusal', toErrorInfo(error))), { binary: true })
        socket.close(closeCodeOf(error))
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
    if (old?.isOpen === true) {
      if (!hello.resume) throw new WireError('LANE_TAKEN', `the ${old} is connected already`)
      // The peer knows that its old connection is dead before we do.
      old.terminate()
    }
    socket.send(encodeFrame({ type: 'welcome', version, nrBulkLanes }), { binary: true })
    const lane = new Lane(socket, hello.lane, hello.laneIndex, 'to-source')
    this.#lanes.set(key, lane)
    this.#options.onLane(lane, hello.resume)
  }
}
