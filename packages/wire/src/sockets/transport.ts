import { createServer, type Server, type ServerOptions } from 'node:http'
import { connect as connectTcp, type OnReadOpts, type Socket } from 'node:net'
import { fds } from '@pageferry/kernel'

/*
 * What carries the bytes of a lane, on both ends: plain TCP today. Nothing above this file knows more of it than a stream
 * of bytes. TLS is one more variant in each of the two functions (tls.connect and https.createServer take the same
 * options), with a connection that has no `setReceiveLowWater`.
 */

export interface Connection {
  readonly socket: Socket
  /**
   * The kernel wakes us when so many bytes are there (SO_RCVLOWAT, socket(7)); 1: as soon as any is. null where it would
   * count other bytes than the reader's: under TLS it counts ciphertext, and a reader that waits for the last bytes of a
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

/** Node has no public way to learn a descriptor. Of a socket that is closed there is none. */
function setReceiveLowWater(socket: Socket, bytes: number): void {
  const { _handle } = socket as Socket & { _handle?: { fd: number } }
  if (_handle) fds.setReceiveLowWater(_handle.fd, bytes)
}

/** The server that lanes are dialled at, not listening yet. It speaks HTTP, which a WebSocket begins with. */
export function createLaneListener(options: ServerOptions): Server {
  return createServer(options, (_request, response) => response.writeHead(426).end())
}
