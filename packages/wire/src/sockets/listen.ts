import { createServer, type IncomingMessage, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Duplex } from 'node:stream'
import { faultLanePath, helloTimeoutMs, LANES, type LaneTerms } from '../index.js'
import { LaneGreeter, maxGreeting } from './handshake.js'
import type { Lane } from './lane.js'

/** How often connections are looked for that say nothing at all, not even a line of HTTP. */
const silenceCheckMs = 1_000

export interface LaneServerOptions {
  host: string
  /** 0: any; a successor takes the port of its predecessor. */
  port: number
  migrationId: string
  token: string
  nrBulkLanes: number
  terms?: LaneTerms
  onLane(lane: Lane, resumed: boolean): void
  /** Takes what asks for the fault lane; without this it is a lane like the others. */
  onFaultUpgrade?(request: IncomingMessage, socket: Duplex, head: Buffer): void
}

/** Accepts the destination's connections. */
export class LaneServer {
  readonly #http: Server
  readonly #greeter: LaneGreeter
  readonly #options: LaneServerOptions

  private constructor(options: LaneServerOptions) {
    const { onFaultUpgrade, nrBulkLanes } = options
    this.#options = options
    this.#http = createServer(
      { headersTimeout: helloTimeoutMs, connectionsCheckingInterval: silenceCheckMs },
      (_request, response) => response.writeHead(426).end(),
    )
    // Every lane twice: its dead connection may still be there when the peer comes back.
    this.#http.maxConnections = maxGreeting + 2 * (nrBulkLanes + 2)
    const kinds = onFaultUpgrade === undefined ? LANES : LANES.filter((kind) => kind !== 'fault')
    this.#greeter = new LaneGreeter({ ...options, kinds })
    this.#http.on('upgrade', (request, socket, head) => {
      if (onFaultUpgrade !== undefined && request.url === faultLanePath) onFaultUpgrade(request, socket, head)
      else this.#greeter.upgrade(request, socket, head)
    })
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
    this.#greeter.close()
    this.#http.close()
    this.#http.closeAllConnections()
  }
}
