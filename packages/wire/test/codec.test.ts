import { deepStrictEqual } from 'node:assert/strict'
import fc from 'fast-check'
import t from 'tap'
import {
  type Direction,
  decodeFrame,
  decodeHello,
  encodeFrame,
  encodeFrameInto,
  encodeHeader,
  FRAME_TYPES,
  type Frame,
  frameBufferBytes,
  headerReserveBytes,
  LANES,
  type Lane,
  maxBatchPages,
  maxPageHeaderBytes,
  maxPayloadBytes,
  maxZeroRunsPerBatch,
  pageLimit,
  payloadBytesOf,
  ROUTES,
  WireError,
} from '../src/index.js'
import { arbitraryFrames } from './support/arbitrary.js'
import { naiveEncode } from './support/naive.js'

const propertyMs = 400
const anyFrame = fc.oneof(...Object.values(arbitraryFrames))

function home(frame: Frame): [Lane, Direction] {
  return [ROUTES[frame.type].lanes[0], ROUTES[frame.type].directions[0]]
}

function samplePayload(frame: Frame): Uint8Array {
  return new Uint8Array(payloadBytesOf(frame)).map((_, i) => i * 7)
}

/** Throws unless `action` throws a WireError. */
function mustRefuse(action: () => unknown): void {
  try {
    action()
  } catch (error) {
    if (error instanceof WireError && error.code === 'PROTOCOL' && error.closeCode >= 4100) return
    throw error
  }
  throw new Error('was accepted')
}

/** Header bytes behind their length; hex with spaces. */
function hexFrame(header: string, payload: Uint8Array = new Uint8Array()): Buffer {
  const bytes = Buffer.from(header.replaceAll(' ', ''), 'hex')
  return Buffer.concat([Buffer.from([bytes.length, 0, 0, 0]), bytes, payload])
}

const page = new Uint8Array(4096).fill(0xa5)

/** Encoded by hand from the protobuf encoding page. */
const literals: [string, Frame, Buffer][] = [
  ['commit', { type: 'commit' }, hexFrame('5a 00')],
  [
    'welcome',
    {
      ...{ type: 'welcome', version: 2, nrBulkLanes: 2, compression: 'none', windowBytes: 2 ** 20 },
      faultPort: 0x1f90,
    },
    hexFrame('12 11 08 02 10 02 1a 04 6e6f6e65 20 808040 28 903f'),
  ],
  [
    'hello',
    {
      ...{ type: 'hello', versions: [1, 300], migrationId: 'm1', token: 'tok' },
      ...{ lane: 'bulk', laneIndex: 1, resume: true, compressions: ['zstd'] },
    },
    hexFrame('0a 1a 0a 03 01 ac02 12 02 6d31 1a 03 746f6b 20 03 28 01 30 01 3a 04 7a737464'),
  ],
  [
    'clockReply',
    {
      ...{ type: 'clockReply', monotonicNs: 2n ** 64n - 1n, boottimeNs: 0n },
      ...{ kernelMonotonicNs: 300n, kernelBoottimeNs: 0n },
    },
    hexFrame('a201 0e 08 ffffffffffffffffff01 18 ac02'),
  ],
  [
    'roundApplied',
    { type: 'roundApplied', asId: 1, round: 2, pages: 128, durationMs: 1.5 },
    hexFrame('42 10 08 01 10 02 18 8001 21 000000000000f83f'),
  ],
  [
    'pageRequest',
    { type: 'pageRequest', asId: 1, round: 3, requestId: 7, page: 2 ** 35 - 8, nrPages: 8, ahead: false },
    hexFrame('f201 0e 08 01 10 03 18 07 20 f8ffffff7f 28 08'),
  ],
  [
    'pageRequest ahead',
    { type: 'pageRequest', asId: 1, round: 3, requestId: 7, page: 16, nrPages: 8, ahead: true },
    hexFrame('f201 0c 08 01 10 03 18 07 20 10 28 08 30 01'),
  ],
  [
    'pageBatch',
    {
      ...{ type: 'pageBatch', asId: 1, round: 1, sequence: 1 },
      ...{ runs: Float64Array.of(0x55555, 1), zeroRuns: Float64Array.of(1, 2, 4, 1), zstdBytes: 0 },
    },
    hexFrame('c202 12 08 01 10 01 18 01 22 04 d5aa15 01 2a 04 01 02 04 01', page),
  ],
  [
    'pageBatch compressed',
    {
      ...{ type: 'pageBatch', asId: 1, round: 1, sequence: 1 },
      ...{ runs: Float64Array.of(0x55555, 1), zeroRuns: new Float64Array(0), zstdBytes: 3 },
    },
    hexFrame('c202 0e 08 01 10 01 18 01 22 04 d5aa15 01 30 03', Buffer.from('abc')),
  ],
  [
    'image',
    { type: 'image', asId: 1, round: 1, name: 'mm', totalBytes: 3, offset: 0 },
    hexFrame('2a 0a 08 01 10 01 1a 02 6d6d 20 03', Uint8Array.of(1, 2, 3)),
  ],
]

for (const [name, frame, bytes] of literals) {
  t.test(`${name} as bytes`, async (t) => {
    const payload = bytes.subarray(bytes.length - payloadBytesOf(frame))
    t.equal(Buffer.from(encodeFrame(frame, payload)).toString('hex'), bytes.toString('hex'))
    t.equal(
      encodeHeader(frame).toString('hex'),
      bytes.subarray(0, bytes.length - payload.length).toString('hex'),
    )
    const decoded = decodeFrame(bytes, ...home(frame))
    t.strictSame(decoded.frame, frame)
    t.same(decoded.payload, payload)
  })
}

t.test('every frame type survives the wire and agrees with a naive encoder', async (t) => {
  for (const type of FRAME_TYPES) {
    fc.assert(
      fc.property(arbitraryFrames[type], (frame) => {
        const payload = samplePayload(frame)
        const bytes = Buffer.from(encodeFrame(frame, payload))
        if (!bytes.equals(naiveEncode(frame, payload))) throw new Error('the encoders differ')
        const decoded = decodeFrame(bytes, ...home(frame))
        deepStrictEqual(decoded.frame, frame)
        if (Buffer.compare(decoded.payload, payload) !== 0) throw new Error('the payload changed')
      }),
      { interruptAfterTimeLimit: propertyMs, numRuns: 100 },
    )
    t.pass(type)
  }
})

t.test('a message cut anywhere is refused', async (t) => {
  for (const type of FRAME_TYPES) {
    fc.assert(
      fc.property(arbitraryFrames[type], (frame) => {
        const bytes = encodeFrame(frame, samplePayload(frame))
        const headerEnd = bytes.length - payloadBytesOf(frame)
        for (let length = 0; length < bytes.length; length++) {
          // In a payload of pages every cut looks alike: those around the header and the ends are tried.
          if (length > headerEnd + 20 && length < bytes.length - 20 && length % 509 !== 0) continue
          mustRefuse(() => decodeFrame(bytes.subarray(0, length), ...home(frame)))
        }
        mustRefuse(() => decodeFrame(Buffer.concat([bytes, Uint8Array.of(0)]), ...home(frame)))
      }),
      { interruptAfterTimeLimit: propertyMs, numRuns: 20 },
    )
    t.pass(type)
  }
})

t.test('a header cut anywhere, with its length adjusted, throws nothing but WireError', async () => {
  fc.assert(
    fc.property(anyFrame, (frame) => {
      const header = encodeHeader(frame)
      const payload = samplePayload(frame)
      for (let length = 4; length < header.length; length++) {
        const message = Buffer.concat([header.subarray(0, length), payload])
        message.writeUInt32LE(length - 4, 0)
        acceptOrRefuse(message, ...home(frame))
      }
    }),
    { interruptAfterTimeLimit: 2 * propertyMs, numRuns: 200 },
  )
})

/** Whatever is accepted must be a frame that could have been sent: it encodes, and decodes to itself. */
function acceptOrRefuse(message: Uint8Array, lane: Lane, direction: Direction): boolean {
  let decoded: { frame: Frame; payload: Uint8Array }
  try {
    decoded = decodeFrame(message, lane, direction)
  } catch (error) {
    if (error instanceof WireError) return false
    throw error
  }
  const again = encodeFrame(decoded.frame, decoded.payload)
  deepStrictEqual(decodeFrame(again, lane, direction).frame, decoded.frame)
  return true
}

t.test('changed bytes throw nothing but WireError', async () => {
  const change = fc.tuple(fc.nat(), fc.integer({ min: 0, max: 255 }))
  fc.assert(
    fc.property(anyFrame, fc.array(change, { minLength: 1, maxLength: 4 }), (frame, changes) => {
      const headerLength = encodeHeader(frame).length
      const message = Buffer.from(encodeFrame(frame, samplePayload(frame)))
      for (const [at, value] of changes) message[at % headerLength] = value
      acceptOrRefuse(message, ...home(frame))
    }),
    { interruptAfterTimeLimit: 4 * propertyMs, numRuns: 5000 },
  )
})

t.test('random bytes throw nothing but WireError', async () => {
  const direction = fc.constantFrom<Direction>('to-source', 'to-destination')
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 200 }),
      fc.constantFrom(...LANES),
      direction,
      (bytes, lane, direction) => {
        acceptOrRefuse(bytes, lane, direction)
        // The same bytes as a header that is at least as long as it says.
        const message = Buffer.concat([Buffer.alloc(4), bytes])
        message.writeUInt32LE(bytes.length, 0)
        acceptOrRefuse(message, lane, direction)
        try {
          decodeHello(message)
        } catch (error) {
          if (!(error instanceof WireError)) throw error
        }
      },
    ),
    { interruptAfterTimeLimit: 4 * propertyMs, numRuns: 20_000 },
  )
})

t.test('pages are copied neither by encodeFrameInto nor by decodeFrame', async (t) => {
  const buffer = new Uint8Array(new ArrayBuffer(frameBufferBytes + 512), 512)
  const payload = buffer.subarray(headerReserveBytes)
  for (let i = 0; i < payload.length; i += 4096) payload[i] = i / 4096
  const runs = Float64Array.from({ length: 2 * maxBatchPages }, (_, i) => (i % 2 === 0 ? i : 1))
  const frame: Frame = {
    type: 'pageBatch',
    asId: 1,
    round: 1,
    sequence: 9,
    runs,
    zeroRuns: new Float64Array(),
    zstdBytes: 0,
  }

  const message = encodeFrameInto(frame, buffer, maxPayloadBytes)
  t.equal(message.buffer, buffer.buffer)
  t.same(Buffer.compare(message, encodeFrame(frame, payload)), 0, 'the same bytes as encodeFrame')
  const decoded = decodeFrame(message, 'bulk', 'to-destination')
  t.equal(decoded.payload.buffer, buffer.buffer)
  t.equal(decoded.payload.byteOffset, buffer.byteOffset + headerReserveBytes)
  t.equal(decoded.payload.length, maxPayloadBytes)
  t.same(decoded.frame, frame)
})

t.test('the longest batch header fits the reserve', async (t) => {
  // Highest page numbers take the most bytes; runs of contents and of zeros alternate.
  const first = pageLimit - 2 * maxZeroRunsPerBatch - 2 * maxBatchPages
  const runs = Float64Array.from({ length: 2 * maxBatchPages }, (_, i) => (i % 2 === 0 ? first + i : 1))
  const zeroFirst = first + 2 * maxBatchPages
  const zeroRuns = Float64Array.from({ length: 2 * maxZeroRunsPerBatch }, (_, i) =>
    i % 2 === 0 ? zeroFirst + i : 1,
  )
  const sequence = Number.MAX_SAFE_INTEGER
  const frame: Frame = {
    type: 'pageBatch',
    asId: 2 ** 32 - 1,
    round: 2 ** 32 - 1,
    sequence,
    runs,
    zeroRuns,
    zstdBytes: 0,
  }
  t.ok(encodeHeader(frame).length < maxPageHeaderBytes)
  t.doesNotThrow(() => encodeFrameInto(frame, new Uint8Array(frameBufferBytes), maxPayloadBytes))
})

t.test('a run table may be part of a larger one', async (t) => {
  const pool = Float64Array.of(9, 9, 5, 1, 9, 9)
  const frame: Frame = { type: 'discard', asId: 1, round: 1, runs: pool.subarray(2, 4) }
  t.same(decodeFrame(encodeFrame(frame), 'fault', 'to-source').frame, {
    ...frame,
    runs: Float64Array.of(5, 1),
  })
})

t.test("what we must not send is our own defect, not the peer's", async (t) => {
  const frame: Frame = { type: 'roundBegin', asId: 0, round: 1, final: false }
  t.throws(() => encodeFrame(frame), { code: 'INTERNAL', message: /roundBegin\.asId is 0/ })
  t.throws(() => encodeFrame({ type: 'commit' }, page), { code: 'INTERNAL' })
  const kernel = { kernelMonotonicNs: 0n, kernelBoottimeNs: 0n }
  t.throws(() => encodeFrame({ ...{ type: 'clockReply', boottimeNs: 0n }, ...kernel, monotonicNs: -1n }), {
    code: 'INTERNAL',
  })
  const ack: Frame = { type: 'batchAck', sequence: 1, bytes: 1 }
  t.throws(() => encodeFrameInto(ack, new Uint8Array(10), 0), { code: 'INTERNAL' })
})
