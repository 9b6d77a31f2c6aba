import { createServer, type Server, type ServerOptions } from 'node:http'
import { connect as connectTcp, type OnReadOpts, type Socket } from 'node:net'
import { fds } from '@pageferry/kernel'

/*
 * The transport of a lane, on both ends: plain TCP today. Everything above this file sees only a stream of bytes. TLS
 * is one more variant in each of the two functions, with a connection that has no `setReceiveLowWater`. tls.connect and
 * https.createServer take the same options.
 */

export interface Connection {
  readonly socket: Socket
  /**
   * Makes the kernel wake us only with this many bytes (SO_RCVLOWAT, socket(7)); 1: with any. null if it would count
   * other bytes than the reader's. Under TLS it counts ciphertext, and a reader that waits for the last bytes of a
   * record would sleep for ever.
   */
  readonly setReceiveLowWater: ((bytes: number) => void) | null
}

/**
 * Begins to connect to the host and port of a `ws:` URL.
 * @param onread a buffer of the caller's that is received into, over and over; default: a new one for each read
 */
export function connect({ hostname, port }: URL, onread?: OnReadOpts): Connection {
  const socket = connectTcp({ host: hostname, port: Number(port), noDelay: true, onread })
  return { socket, setReceiveLowWater: (bytes) => setReceiveLowWater(socket, bytes) }
}

/** Node has no public way to get a descriptor. A closed socket has none. */
function setReceiveLowWater(socket: Socket, bytes: number): void {
  const { _handle } = socket as Socket & { _handle?: { fd: number } }
  if (_handle) fds.setReceiveLowWater(_handle.fd, bytes)
}

/** The server at which lanes are dialled; it does not listen yet. It speaks HTTP, with which a WebSocket begins. */
export function createLaneListener(options: ServerOptions): Server {
  return createServer(options, (_request, response) => response.writeHead(426).end())
}
