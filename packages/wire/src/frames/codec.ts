import { PageferryError } from '@pageferry/base'
import protobuf from 'protobufjs/minimal.js'
import { pageferry } from '#generated/frames'
import { WireError } from './errors.js'
import { check, type Fields, fromWire, toWire } from './fields.js'
import { FRAMES, type Frame, type FrameOf, type FrameType } from './frames.js'
import { type Direction, isAllowed, type Lane, type LaneLimits, laneLimits, maxHeaderBytes } from './lanes.js'
import { headerReserveBytes, lengthPrefixBytes, maxHelloBytes } from './limits.js'
import { checkRules, payloadBytesOf } from './rules.js'

const codec = pageferry.wire.Frame
const noPayload = new Uint8Array(0)
const helloLimits: LaneLimits = { headerBytes: maxHeaderBytes('hello'), messageBytes: maxHelloBytes }

/**
 * Encodes the u32 header length and the header, without the payload that belongs behind it.
 * @throws PageferryError INTERNAL for a frame that the peer would refuse
 */
export function encodeHeader(frame: Frame): Buffer {
  const header = encodeBody(frame)
  const message = Buffer.allocUnsafe(lengthPrefixBytes + header.length)
  message.writeUInt32LE(header.length, 0)
  message.set(header, lengthPrefixBytes)
  return message
}

/**
 * Encodes a whole message in a buffer of its own; copies the payload.
 * @throws PageferryError INTERNAL for a frame that the peer would refuse, or a payload of the wrong length
 */
export function encodeFrame(frame: Frame, payload: Uint8Array = noPayload): Uint8Array {
  const header = encodeHeader(frame)
  checkPayload(frame, payload.length)
  return payload.length === 0 ? header : Buffer.concat([header, payload])
}

/**
 * Writes the header directly in front of a payload that already lies at `headerReserveBytes` in `buffer`. Returns the
 * part of `buffer` to send. The payload is not copied. Do not touch `buffer` until ws called back.
 * @param payloadLength bytes of the payload
 * @throws PageferryError INTERNAL as `encodeFrame`, and for a header longer than the reserve (control frames without
 * payload only: they have no use for this)
 */
export function encodeFrameInto(frame: Frame, buffer: Uint8Array, payloadLength: number): Uint8Array {
  const header = encodeBody(frame)
  checkPayload(frame, payloadLength)
  const end = headerReserveBytes + payloadLength
  const start = headerReserveBytes - header.length - lengthPrefixBytes
  if (start < 0) throw new PageferryError('INTERNAL', `the header of ${frame.type} exceeds the reserve`)
  if (end > buffer.length) {
    throw new PageferryError('INTERNAL', `the payload of ${frame.type} exceeds its buffer`)
  }
  new DataView(buffer.buffer, buffer.byteOffset).setUint32(start, header.length, true)
  buffer.set(header, start + lengthPrefixBytes)
  return buffer.subarray(start, end)
}

function encodeBody(frame: Frame): Uint8Array {
  try {
    const fields: Fields = FRAMES[frame.type]
    check(fields, frame, frame.type)
    checkRules(frame)
    const header = codec.encode({ [frame.type]: toWire(fields, frame) }).finish()
    checkHeaderLength(frame.type, header.length)
    return header
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new PageferryError('INTERNAL', `cannot encode ${frame.type}: ${reason}`, { cause })
  }
}

function checkPayload(frame: Frame, length: number): void {
  const expected = payloadBytesOf(frame)
  if (length === expected) return
  throw new PageferryError('INTERNAL', `${frame.type} takes ${expected} bytes of payload, not ${length}`)
}

function checkHeaderLength(type: FrameType, length: number): void {
  const max = maxHeaderBytes(type)
  if (length > max) {
    throw new WireError('TOO_LARGE', `the header of ${type} has ${length} bytes, at most ${max} are allowed`)
  }
}

/**
 * Decodes a received message. `payload` is a view of `message`, not a copy.
 * @param lane on which it came
 * @param direction whether we are the source or the destination
 * @throws WireError, and nothing else, for everything that the protocol does not allow; the message must then have no
 * effect
 */
export function decodeFrame(
  message: Uint8Array,
  lane: Lane,
  direction: Direction,
): { frame: Frame; payload: Uint8Array } {
  return decode(message, laneLimits(lane, direction), (type) => {
    if (!isAllowed(type, lane, direction)) {
      throw new WireError('WRONG_LANE', `${type} is not allowed ${direction} on the ${lane} lane`)
    }
  })
}

/**
 * Decodes the first message of a connection, when neither its lane nor its token are known yet.
 * @throws WireError as `decodeFrame`; OUT_OF_ORDER for any other frame
 */
export function decodeHello(message: Uint8Array): FrameOf<'hello'> {
  const { frame } = decode(message, helloLimits, (type) => {
    if (type !== 'hello') throw new WireError('OUT_OF_ORDER', `the first frame is ${type}, not hello`)
  })
  return frame as FrameOf<'hello'>
}

function decode(
  message: Uint8Array,
  limits: LaneLimits,
  admit: (type: FrameType) => void,
): { frame: Frame; payload: Uint8Array } {
  const bytes = Buffer.from(message.buffer, message.byteOffset, message.byteLength)
  if (bytes.length < lengthPrefixBytes) {
    throw new WireError('MALFORMED', `a message of ${bytes.length} bytes is no frame`)
  }
  if (bytes.length > limits.messageBytes) {
    throw new WireError(
      'TOO_LARGE',
      `a message of ${bytes.length} bytes, at most ${limits.messageBytes} are allowed`,
    )
  }
  const headerLength = bytes.readUInt32LE(0)
  const payloadStart = lengthPrefixBytes + headerLength
  if (payloadStart > bytes.length) {
    throw new WireError('MALFORMED', `a header of ${headerLength} bytes in a message of ${bytes.length}`)
  }
  if (headerLength > limits.headerBytes) {
    throw new WireError(
      'TOO_LARGE',
      `a header of ${headerLength} bytes, at most ${limits.headerBytes} are allowed`,
    )
  }

  const { type, body } = decodeHeader(bytes.subarray(lengthPrefixBytes, payloadStart))
  admit(type)
  checkHeaderLength(type, headerLength)
  const fields: Fields = FRAMES[type]
  const frame = { type, ...fromWire(fields, body) } as Frame
  check(fields, frame, type)
  checkRules(frame)

  const payload = message.subarray(payloadStart)
  const expected = payloadBytesOf(frame)
  if (payload.length !== expected) {
    throw new WireError(
      'BAD_PAYLOAD',
      `${type} has ${payload.length} bytes of payload instead of ${expected}`,
    )
  }
  return { frame, payload }
}

function decodeHeader(header: Buffer): { type: FrameType; body: Record<string, unknown> } {
  const decoded = parse(header)
  // The oneof's accessor. If there are several bodies, protobuf keeps the last.
  const type = decoded.body as FrameType | undefined
  if (type === undefined) throw new WireError('UNKNOWN_FRAME', 'a frame with no body that this version knows')
  return { type, body: decoded[type] as Record<string, unknown> }
}

function parse(header: Buffer): Record<string, unknown> {
  try {
    const reader = protobuf.Reader.create(header)
    // Skips fields of later versions.
    reader.discardUnknown = true
    return codec.decode(reader, header.length) as unknown as Record<string, unknown>
  } catch (cause) {
    throw new WireError('MALFORMED', 'a header that cannot be parsed', { cause })
  }
}
