import { Duplex } from 'node:stream'
import { lengthPrefixBytes, maxPageHeaderBytes, maxPayloadBytes } from '../index.js'
import { type Connection, connect } from './transport.js'

/** Bytes in front of a message that a server sends. A server does not mask (RFC 6455, section 5.2). */
const maxWebSocketHeaderBytes = 10
const maxFrameBytes = maxWebSocketHeaderBytes + lengthPrefixBytes + maxPageHeaderBytes + maxPayloadBytes
/** One frame that is being read and one that arrives. Small enough to stay in a processor's cache. */
const bufferBytes = 2 * maxFrameBytes
/** With less room than this a read is not worthwhile. */
const minReadBytes = 64 * 1024

/**
 * The connection of a bulk lane's ws client. It receives into one buffer, over and over, and gives ws whole WebSocket
 * frames. ws then has nothing to join: no memory is allocated for a batch, and none is copied. (A net.Socket allocates
 * 64 KiB for each read, and ws another MiB for the message. That is fresh memory every time, which costs a page fault
 * for each 4 KiB of it.)
 *
 * Later bytes overwrite the ones that were handed out. A reader that keeps them beyond their event must copy them.
 *
 * It only reads lengths. Bytes that are no frame, or belong to one too long for the buffer, go to ws as they come.
 */
export class FrameSocket extends Duplex {
  readonly #connection: Connection
  readonly #buffer = Buffer.allocUnsafeSlow(bufferBytes)
  /** Begin and end of the bytes that were not handed out yet. */
  #start = 0
  #end = 0
  #isAligned = false
  #lowWater = 1

  constructor(url: URL) {
    super({ allowHalfOpen: false })
    this.#connection = connect(url, {
      buffer: () => this.#room(),
      callback: (nrBytes) => this.#onReceived(nrBytes),
    })
    const { socket } = this.#connection
    socket.on('end', () => this.push(null))
    socket.on('error', (error) => this.destroy(error))
    socket.on('close', () => this.destroy())
  }

  /** Only WebSocket frames come from here on. Until then it is the handshake's HTTP, which is passed on at once. */
  alignFrames(): void {
    this.#isAligned = true
  }

  /** The place for the next bytes: behind the last ones, which move to the front if their frame would not fit. */
  #room(): Uint8Array {
    const pending = this.#end - this.#start
    const needed = Math.max(this.#frameBytes() - pending, minReadBytes)
    if (pending === 0) this.#start = this.#end = 0
    else if (bufferBytes - this.#end < needed) {
      this.#buffer.copyWithin(0, this.#start, this.#end)
      this.#start = 0
      this.#end = pending
    }
    return this.#buffer.subarray(this.#end)
  }

  /** Length of the frame at `start`, as far as it is known; 0 if it is unknown, or if it is no frame that fits. */
  #frameBytes(): number {
    const at = this.#start
    const pending = this.#end - at
    if (pending < 2) return 0
    const length = this.#buffer[at + 1] & 0x7f
    if (length < 126) return 2 + length
    if (length === 126) return pending < 4 ? 0 : 4 + this.#buffer.readUInt16BE(at + 2)
    if (pending < maxWebSocketHeaderBytes) return 0
    const bytes = maxWebSocketHeaderBytes + Number(this.#buffer.readBigUInt64BE(at + 2))
    return bytes > maxFrameBytes ? 0 : bytes
  }

  #onReceived(nrBytes: number): boolean {
    this.#end += nrBytes
    const from = this.#start
    if (this.#isAligned) this.#skipWholeFrames()
    else this.#start = this.#end
    this.#waitForFrame()
    if (this.#start === from) return true
    const bytes = this.#buffer.subarray(from, this.#start)
    // Bytes that have to wait would be overwritten, so copy them. False: the reader is behind, and `_read` continues.
    const isTakenNow = this.#isAligned && this.readableFlowing === true && this.readableLength === 0
    return this.push(isTakenNow ? bytes : Buffer.from(bytes))
  }

  #skipWholeFrames(): void {
    while (this.#start < this.#end) {
      const bytes = this.#frameBytes()
      const pending = this.#end - this.#start
      if (bytes > 0 && bytes <= pending) this.#start += bytes
      else if (bytes === 0 && pending >= maxWebSocketHeaderBytes) this.#start = this.#end
      else return
    }
  }

  /** Asks for one wake-up for the rest of a frame, and not one for every piece of it. */
  #waitForFrame(): void {
    const missing = Math.max(this.#frameBytes() - (this.#end - this.#start), 1)
    if (missing === this.#lowWater) return
    this.#connection.setReceiveLowWater?.(missing)
    this.#lowWater = missing
  }

  override _read(): void {
    this.#connection.socket.resume()
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#connection.socket.write(chunk, done)
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#connection.socket.end(done)
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#connection.socket.destroy()
    done(error)
  }
}
