// Framing: magic words, then per message its length (u32), the message, and for some kinds raw bytes. All words are
// little-endian. The input comes from a peer or from a disk: every length is checked before it is used.

import { PageferryError } from '@pageferry/base'
import type { Reader, Writer } from 'protobufjs'
import protobuf from 'protobufjs/minimal.js'
import { criu } from '#generated/criu'
import { fromProtobuf, toProtobuf } from './convert.js'
import { IMAGE_KINDS, type ImageContent, type ImageKind, type ImageKindName } from './kinds.js'
import type { Messages } from './types.js'

interface GeneratedCodec {
  encode(message: object): Writer
  decode(reader: Reader): object
}
const codecs = criu as unknown as Record<keyof Messages, GeneratedCodec>
const wordBytes = 4

/** As `Message`, but 64-bit fields may also be safe integers, and empty repeated fields may be absent. */
type Loose<T> = T extends bigint
  ? bigint | number
  : T extends Uint8Array
    ? T
    : T extends readonly (infer U)[]
      ? readonly Loose<U>[]
      : T extends object
        ? { [K in keyof T as T[K] extends readonly unknown[] ? never : K]: Loose<T[K]> } & {
            [K in keyof T as T[K] extends readonly unknown[] ? K : never]?: Loose<T[K]>
          }
        : T
export type ImageInput<K extends ImageKindName> = Loose<ImageContent<K>>

/**
 * Encodes a whole image file. `content` is one message, or an array for kinds of cardinality `many`. Throws INTERNAL
 * when a message does not fit the format (see convert.ts).
 *
 * Throws REFUSED when it exceeds the limits that a reader enforces: the workload is too large for the format, and must
 * not be stopped for it.
 */
export function encodeImage<K extends ImageKindName>(kindName: K, content: ImageInput<K>): Uint8Array {
  const kind: ImageKind = IMAGE_KINDS[kindName]
  if (Array.isArray(content) !== (kind.cardinality === 'many')) {
    throw new PageferryError('INTERNAL', `image ${kindName} takes ${kind.cardinality} message(s)`)
  }
  const messages = (kind.cardinality === 'many' ? content : [content]) as Record<string, unknown>[]
  checkLimit(kindName, 'messages', messages.length, kind.maxMessages)

  const chunks: Uint8Array[] = [words(kind.magics)]
  for (const message of messages) {
    const { data, ...fields } = message
    const encoded = codecs[kind.message]
      .encode(toProtobuf(kind.message, kind.trailing === undefined ? message : fields))
      .finish()
    checkLimit(kindName, 'bytes in a message', encoded.length, kind.maxMessageBytes)
    chunks.push(words([encoded.length]), encoded)
    if (kind.trailing !== undefined) {
      if (!(data instanceof Uint8Array) || data.length !== message[kind.trailing.lengthField]) {
        throw new PageferryError(
          'INTERNAL',
          `image ${kindName}: ${kind.trailing.lengthField} is not the data's length`,
        )
      }
      checkLimit(kindName, 'bytes after a message', data.length, kind.trailing.maxTrailingBytes)
      chunks.push(data)
    }
  }
  return concat(chunks)
}

/** Decodes an image file; the reverse of `encodeImage`. Throws PROTOCOL for anything malformed or too large. */
export function decodeImage<K extends ImageKindName>(kindName: K, bytes: Uint8Array): ImageContent<K> {
  const kind: ImageKind = IMAGE_KINDS[kindName]
  let at = checkMagics(kindName, kind.magics, bytes)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const messages: Record<string, unknown>[] = []
  while (at < bytes.length) {
    if (messages.length === kind.maxMessages)
      throw malformed(kindName, at, `more than ${kind.maxMessages} messages`)
    if (bytes.length - at < wordBytes) throw malformed(kindName, at, 'a length is cut off')
    const length = view.getUint32(at, true)
    at += wordBytes
    if (length > kind.maxMessageBytes) throw malformed(kindName, at, `a message of ${length} bytes`)
    if (length > bytes.length - at) throw malformed(kindName, at, 'a message is cut off')
    const message = decodeMessage(kindName, kind.message, bytes.subarray(at, at + length), at)
    at += length
    if (kind.trailing !== undefined) {
      const trailing = message[kind.trailing.lengthField] as number
      if (trailing > kind.trailing.maxTrailingBytes)
        throw malformed(kindName, at, `${trailing} bytes after a message`)
      if (trailing > bytes.length - at) throw malformed(kindName, at, 'the bytes after a message are cut off')
      message.data = new Uint8Array(bytes.subarray(at, at + trailing))
      at += trailing
    }
    messages.push(message)
  }
  if (kind.cardinality === 'many') return messages as unknown as ImageContent<K>
  if (messages.length === 0) throw malformed(kindName, at, 'no message')
  return messages[0] as unknown as ImageContent<K>
}

/** Returns the offset behind the magic words; throws PROTOCOL when they are not the kind's. */
export function checkMagics(kindName: string, magics: readonly number[], bytes: Uint8Array): number {
  const expected = words(magics)
  if (bytes.length < expected.length || !expected.every((byte, i) => bytes[i] === byte)) {
    throw malformed(kindName, 0, 'wrong magic')
  }
  return expected.length
}

/** Little-endian u32 words. */
export function words(values: readonly number[]): Uint8Array {
  const out = new Uint8Array(values.length * wordBytes)
  const view = new DataView(out.buffer)
  values.forEach((value, i) => {
    view.setUint32(i * wordBytes, value, true)
  })
  return out
}

export function malformed(kindName: string, offset: number, what: string): PageferryError {
  const details = { image: kindName, offset }
  return new PageferryError('PROTOCOL', `image ${kindName}, offset ${offset}: ${what}`, { details })
}

function decodeMessage(kindName: string, messageName: keyof Messages, bytes: Uint8Array, offset: number) {
  const reader = protobuf.Reader.create(bytes)
  // Skips fields of newer formats: keeping them would copy data that is never read.
  reader.discardUnknown = true
  try {
    return fromProtobuf(messageName, codecs[messageName].decode(reader))
  } catch (error) {
    throw malformed(kindName, offset, error instanceof Error ? error.message : String(error))
  }
}

function checkLimit(kindName: string, what: string, value: number, limit: number): void {
  if (value <= limit) return
  const details = { image: kindName, value, limit }
  throw new PageferryError('REFUSED', `image ${kindName}: ${value} ${what}, the limit is ${limit}`, {
    details,
  })
}

function concat(chunks: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0))
  let at = 0
  for (const chunk of chunks) {
    out.set(chunk, at)
    at += chunk.length
  }
  return out
}
