import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { helloTimeoutMs, LANES, type Lane as LaneKind } from '../index.js'
import { Handshake, type HandshakeOptions, maxUnfinished } from './handshake.js'
import { createLaneListener } from './transport.js'

/** How often the server looks for connections that send nothing at all, not even a line of HTTP. */
const silenceCheckMs = 1_000

export interface LaneServerOptions extends Omit<HandshakeOptions, 'faultPort' | 'kinds'> {
  host: string
  /** 0: any free port. A successor takes the port of its predecessor. */
  port: number
  /** Lanes that are dialled here. Default: all. */
  kinds?: readonly LaneKind[]
  /** Default: the fault lane is dialled here. */
  faultPort?: number
}

/** Accepts the destination's connections, for the thread that serves their lanes. */
export class LaneServer {
  readonly #http: Server
  readonly #host: string
  readonly #handshake: Handshake

  private constructor(http: Server, options: LaneServerOptions) {
    const { host, nrBulkLanes, kinds = LANES, faultPort = portOf(http) } = options
    this.#http = http
    this.#host = host
    const nrLanes = kinds.length + (kinds.includes('bulk') ? nrBulkLanes - 1 : 0)
    // Every lane counts twice: its dead connection may still exist when the peer comes back.
    http.maxConnections = maxUnfinished + 2 * nrLanes
    this.#handshake = new Handshake({ ...options, kinds, faultPort })
    http.on('upgrade', (request, socket, head) => this.#handshake.upgrade(request, socket, head))
  }

  /** @throws as listen(2) does, such as EADDRINUSE */
  static async listen(options: LaneServerOptions): Promise<LaneServer> {
    const http = createLaneListener({
      headersTimeout: helloTimeoutMs,
      connectionsCheckingInterval: silenceCheckMs,
    })
    await new Promise<void>((resolve, reject) => {
      http.once('error', reject)
      http.listen(options.port, options.host, resolve)
    })
    // In the turn in which listening begins, so no connection was accepted before.
    return new LaneServer(http, options)
  }

  get port(): number {
    return portOf(this.#http)
  }

  get url(): string {
    return `ws://${this.#host}:${this.port}`
  }

  close(): void {
    this.#handshake.close()
    this.#http.close()
    this.#http.closeAllConnections()
  }
}

function portOf(http: Server): number {
  return (http.address() as AddressInfo).port
}
