import { pageBytes } from '@pageferry/base'
import fc from 'fast-check'
import t from 'tap'
import {
  bulkWindowBytes,
  decodeFrame,
  decodeHello,
  encodeFrame,
  FRAME_TYPES,
  type Frame,
  type FrameOf,
  imagePieceBytes,
  isAllowed,
  LANES,
  maxBatchPages,
  maxBulkWindowBytes,
  maxFaultPages,
  maxHashPages,
  maxHelloBytes,
  maxImageBytes,
  maxPageHeaderBytes,
  maxPayloadBytes,
  maxZeroPagesPerBatch,
  maxZeroRunsPerBatch,
  minBulkWindowBytes,
  pageLimit,
  payloadBytesOf,
  ROUTES,
  type WireFault,
} from '../src/index.js'
import { arbitraryFrames } from './support/arbitrary.js'
import { naiveEncode } from './support/naive.js'

const none = new Float64Array()
const at = (...pairs: number[]) => Float64Array.from(pairs)

/** A table of `nrRuns` runs with a hole of one page before each. */
function scattered(nrRuns: number, nrPages = 1): Float64Array {
  return Float64Array.from({ length: 2 * nrRuns }, (_, i) =>
    i % 2 === 0 ? (i / 2) * (nrPages + 1) : nrPages,
  )
}

const batch: FrameOf<'pageBatch'> = {
  type: 'pageBatch',
  asId: 1,
  round: 1,
  sequence: 1,
  runs: at(8, 4),
  zeroRuns: none,
  zstdBytes: 0,
}
const reply: FrameOf<'pageReply'> = {
  ...{ type: 'pageReply', asId: 1, round: 1, requestId: 1 },
  ...{ page: 100, nrPages: 8, runs: at(100, 8), zeroRuns: none, zstdBytes: 0 },
}
const request: FrameOf<'pageRequest'> = {
  type: 'pageRequest',
  asId: 1,
  round: 1,
  requestId: 1,
  page: 5,
  nrPages: 1,
  ahead: false,
}
const image: FrameOf<'image'> = { type: 'image', asId: 1, round: 1, name: 'mm', totalBytes: 10, offset: 0 }
const hashes: FrameOf<'pageHashes'> = {
  type: 'pageHashes',
  asId: 1,
  runs: at(1, 2),
}
const failed: FrameOf<'failed'> = { type: 'failed', code: 'KERNEL', message: 'm', detailsJson: '' }
const hello: FrameOf<'hello'> = {
  ...{ type: 'hello', versions: [1], migrationId: 'm', token: 't' },
  ...{ lane: 'control', laneIndex: 0, resume: false, compressions: ['zstd', 'of-the-future'] },
}
const welcome: FrameOf<'welcome'> = {
  ...{ type: 'welcome', version: 2, nrBulkLanes: 1, compression: 'zstd', windowBytes: bulkWindowBytes },
  faultPort: 1,
}
const ns = 2n ** 63n
const facts = {
  ...{ kernelRelease: '6.1.0', machine: 'x86_64', bootId: 'b', vdsoSha256: new Uint8Array(32) },
  ...{ xcr0: 7n, xsaveBytes: 832, cpuFlags: ['fpu'], vdsoPages: 2, vvarPages: 4 },
}
const begin: FrameOf<'begin'> = {
  ...{ type: 'begin', source: facts, asId: 1, pid: 77, comm: 'python3', tids: [77], residentPages: 10 },
  ...{ mode: 'hybrid', verify: 'after-resume', files: [], monotonicNs: ns, boottimeNs: ns },
}

const valid: Frame[] = [
  ...[batch, reply, request, image, hashes, failed, hello, begin],
  { ...batch, runs: at(pageLimit - 1, 1) },
  { ...batch, zstdBytes: 1 },
  { ...batch, zstdBytes: 4 * pageBytes - 1 },
  { ...reply, zstdBytes: 8 * pageBytes - 1 },
  welcome,
  { ...welcome, compression: 'none', windowBytes: minBulkWindowBytes },
  { ...welcome, windowBytes: maxBulkWindowBytes },
  { ...welcome, faultPort: 65_535 },
  { ...batch, runs: at(1, 1, 2, 1), zeroRuns: at(0, 1, 3, 1) },
  { ...batch, runs: scattered(maxBatchPages), zeroRuns: at(2 ** 20, maxZeroPagesPerBatch) },
  { ...batch, runs: none, zeroRuns: scattered(maxZeroRunsPerBatch) },
  { ...reply, runs: none },
  { ...reply, nrPages: maxFaultPages, runs: at(100, maxFaultPages) },
  { ...image, totalBytes: 0 },
  { ...image, totalBytes: maxImageBytes, offset: maxImageBytes - imagePieceBytes },
  { ...hashes, runs: at(0, maxHashPages) },
  { ...hashes, runs: none },
]

t.test('the limits themselves are allowed', async (t) => {
  for (const frame of valid) {
    const payload = new Uint8Array(payloadBytesOf(frame))
    const { lanes, directions } = ROUTES[frame.type]
    t.strictSame(decodeFrame(encodeFrame(frame, payload), lanes[0], directions[0]).frame, frame)
  }
})

const refused: [what: string, fault: WireFault, frame: Frame, payloadBytes?: number][] = [
  ['an unordered table', 'BAD_RUNS', { ...batch, runs: at(8, 1, 4, 1) }],
  ['overlapping runs', 'BAD_RUNS', { ...batch, runs: at(8, 2, 9, 1) }],
  ['the same run twice', 'BAD_RUNS', { ...batch, zeroRuns: at(2, 1, 2, 1) }],
  ['a run of no pages', 'BAD_RUNS', { ...batch, runs: at(8, 0) }],
  ['half a run', 'BAD_RUNS', { ...batch, runs: at(8, 1, 9) }, 4096],
  ['a page beyond the address space', 'BAD_RUNS', { ...batch, runs: at(pageLimit, 1) }],
  ['a run out of the address space', 'BAD_RUNS', { ...batch, runs: at(pageLimit - 1, 2) }],
  ['a page beyond 2^36', 'BAD_RUNS', { ...batch, runs: at(2 ** 36, 1) }],
  ['a run whose end is not exact', 'BAD_RUNS', { ...batch, zeroRuns: at(2, 2 ** 53) }],
  ['zero and contents', 'BAD_RUNS', { ...batch, runs: at(8, 4), zeroRuns: at(1, 3, 11, 4) }],
  ['an empty batch', 'BAD_RUNS', { ...batch, runs: none }],
  ['a request for no hashes', 'BAD_RUNS', { type: 'hashRequest', asId: 1, runs: none }],
  [
    'a request for too many hashes',
    'TOO_LARGE',
    { type: 'hashRequest', asId: 1, runs: at(0, maxHashPages + 1) },
  ],
  ['an empty discard', 'BAD_RUNS', { type: 'discard', asId: 1, round: 1, runs: none }],
  ['a page too many in a batch', 'TOO_LARGE', { ...batch, runs: at(0, maxBatchPages + 1) }, maxPayloadBytes],
  [
    'a run too many in a batch',
    'TOO_LARGE',
    { ...batch, runs: scattered(maxBatchPages + 1) },
    maxPayloadBytes,
  ],
  ['a zero page too many', 'TOO_LARGE', { ...batch, zeroRuns: at(2 ** 20, maxZeroPagesPerBatch + 1) }],
  [
    'a zero run too many',
    'TOO_LARGE',
    { ...batch, runs: none, zeroRuns: scattered(maxZeroRunsPerBatch + 1) },
  ],
  [
    'a header beyond the limit',
    'TOO_LARGE',
    { ...batch, zeroRuns: scattered(maxPageHeaderBytes / 3, 2 ** 15) },
  ],
  ['a payload that is too short', 'BAD_PAYLOAD', batch, 4 * 4096 - 1],
  ['a payload that is too long', 'BAD_PAYLOAD', batch, 4 * 4096 + 1],
  ['a payload behind Failed', 'BAD_PAYLOAD', failed, 1],
  ['hashes for fewer pages', 'BAD_PAYLOAD', hashes, 8],
  ['too many hashes', 'TOO_LARGE', { ...hashes, runs: at(0, maxHashPages + 1) }, maxPayloadBytes],
  ['address space 0', 'BAD_VALUE', { ...batch, asId: 0 }],
  ['round 0', 'BAD_VALUE', { ...batch, round: 0 }],
  ['sequence 0', 'BAD_VALUE', { ...batch, sequence: 0 }],
  ['a reply before its request', 'BAD_RUNS', { ...reply, runs: at(99, 2) }],
  ['a reply behind its request', 'BAD_RUNS', { ...reply, zeroRuns: at(108, 1) }],
  ['a request for nothing', 'BAD_VALUE', { ...request, nrPages: 0 }],
  ['a request for too much', 'BAD_VALUE', { ...request, nrPages: maxFaultPages + 1 }],
  ['a request out of the address space', 'BAD_RUNS', { ...request, page: pageLimit - 1, nrPages: 2 }],
  ['an image that is too large', 'BAD_VALUE', { ...image, totalBytes: maxImageBytes + 1 }],
  [
    'an image offset inside a piece',
    'BAD_VALUE',
    { ...image, totalBytes: 2 * imagePieceBytes, offset: 4096 },
    imagePieceBytes,
  ],
  [
    'an image offset at its end',
    'BAD_VALUE',
    { ...image, totalBytes: imagePieceBytes, offset: imagePieceBytes },
    0,
  ],
  ['an image name with a slash', 'BAD_VALUE', { ...image, name: '../etc' }],
  ['a hidden image name', 'BAD_VALUE', { ...image, name: '.mm' }],
  ['an image name with a newline', 'BAD_VALUE', { ...image, name: 'mm\n' }],
  ['a message that is too long', 'TOO_LARGE', { ...failed, message: 'x'.repeat(3000) }],
  ['details that are no JSON', 'BAD_VALUE', { ...failed, detailsJson: '{' }],
  ['details that are no object', 'BAD_VALUE', { ...failed, detailsJson: '[]' }],
  ['details that are too deep', 'BAD_VALUE', { ...failed, detailsJson: '['.repeat(60_000) }],
  ['details that are too long', 'TOO_LARGE', { ...failed, detailsJson: `{"a":"${'x'.repeat(70_000)}"}` }],
  ['an empty migration id', 'BAD_VALUE', { ...hello, migrationId: '' }],
  ['no versions', 'BAD_VALUE', { ...hello, versions: [] }],
  ['too many versions', 'TOO_LARGE', { ...hello, versions: Array(33).fill(1) }],
  ['a second control lane', 'BAD_VALUE', { ...hello, laneIndex: 1 }],
  ['no bulk lane', 'BAD_VALUE', { ...welcome, nrBulkLanes: 0 }],
  ['too many compressions', 'TOO_LARGE', { ...hello, compressions: Array(9).fill('zstd') }],
  ['a compression without a name', 'BAD_VALUE', { ...hello, compressions: [''] }],
  ['an unknown compression', 'BAD_VALUE', { ...welcome, compression: 'lz4' as 'zstd' }],
  ['a window for less than a batch', 'BAD_VALUE', { ...welcome, windowBytes: minBulkWindowBytes - 1 }],
  ['a window beyond all memory', 'BAD_VALUE', { ...welcome, windowBytes: maxBulkWindowBytes + 1 }],
  ['no window', 'BAD_VALUE', { ...welcome, windowBytes: 0 }],
  ['no port for the fault lane', 'BAD_VALUE', { ...welcome, faultPort: 0 }],
  ['a port that TCP does not have', 'BAD_VALUE', { ...welcome, faultPort: 65_536 }],
  ['pages that became no smaller', 'BAD_VALUE', { ...batch, zstdBytes: 4 * pageBytes }, 4 * pageBytes],
  ['compressed zeros', 'BAD_VALUE', { ...batch, runs: none, zeroRuns: at(1, 1), zstdBytes: 9 }, 9],
  ['a reply that became no smaller', 'BAD_VALUE', { ...reply, zstdBytes: 8 * pageBytes }, 8 * pageBytes],
  ['no threads', 'BAD_VALUE', { ...begin, tids: [] }],
  ['pid 0', 'BAD_VALUE', { ...begin, pid: 0 }],
  [
    'a relative path',
    'BAD_VALUE',
    { ...begin, files: [{ path: 'lib', bytes: 1, write: false, exactSize: true, locks: [] }] },
  ],
  ['half a digest', 'BAD_VALUE', { ...begin, source: { ...facts, vdsoSha256: new Uint8Array(16) } }],
  ['a negative duration', 'BAD_VALUE', { type: 'running', resumeMs: -1, pid: 1 }],
  ['a duration that is no number', 'BAD_VALUE', { type: 'running', resumeMs: Number.NaN, pid: 1 }],
]

t.test('beyond a limit the decoder and the encoder refuse', async (t) => {
  for (const [what, fault, frame, payloadBytes] of refused) {
    const payload = new Uint8Array(payloadBytes ?? payloadBytesOf(frame))
    const { lanes, directions } = ROUTES[frame.type]
    const message = naiveEncode(frame, payload)
    t.throws(
      () => decodeFrame(message, lanes[0], directions[0]),
      { name: 'WireError', code: 'PROTOCOL', fault },
      what,
    )
    t.throws(() => encodeFrame(frame, payload), { code: 'INTERNAL' }, what)
  }
})

t.test('a number that no double holds is refused', async (t) => {
  // batchAck.bytes = 2^53 + 1
  const header = Buffer.from('ca020b08011081808080808080 10'.replaceAll(' ', ''), 'hex')
  t.throws(() => decodeFrame(withLength(header), 'bulk', 'to-source'), {
    name: 'WireError',
    fault: 'BAD_VALUE',
  })
})

function withLength(header: Buffer, length = header.length): Buffer {
  const message = Buffer.concat([Buffer.alloc(4), header])
  message.writeUInt32LE(length, 0)
  return message
}

t.test('what is not a frame', async (t) => {
  const cases: [string, WireFault, Buffer][] = [
    ['nothing', 'MALFORMED', Buffer.alloc(0)],
    ['three bytes', 'MALFORMED', Buffer.alloc(3)],
    ['a header beyond the message', 'MALFORMED', withLength(Buffer.from('5a00', 'hex'), 3)],
    ['a header of 4 GiB', 'MALFORMED', withLength(Buffer.from('5a00', 'hex'), 0xffffffff)],
    ['no header', 'UNKNOWN_FRAME', withLength(Buffer.alloc(0))],
    ['a body of a later version', 'UNKNOWN_FRAME', withLength(Buffer.from('9a0600', 'hex'))],
    ['a body of the wrong wire type', 'UNKNOWN_FRAME', withLength(Buffer.from('5800', 'hex'))],
    ['a message without its facts', 'BAD_VALUE', withLength(Buffer.from('1a00', 'hex'))],
    ['a header longer than the lane allows', 'TOO_LARGE', withLength(Buffer.alloc(1_050_000))],
    ['a message longer than the lane allows', 'TOO_LARGE', Buffer.alloc(2_000_000)],
  ]
  for (const [what, fault, message] of cases) {
    t.throws(() => decodeFrame(message, 'control', 'to-destination'), { name: 'WireError', fault }, what)
  }
})

t.test('a field of a later version is skipped', async (t) => {
  const message = withLength(Buffer.from('5a03 f80701'.replaceAll(' ', ''), 'hex'))
  t.strictSame(decodeFrame(message, 'control', 'to-destination').frame, { type: 'commit' })
})

t.test('of two bodies the last counts, as in all of protobuf', async (t) => {
  const message = withLength(Buffer.from('7a005a00', 'hex'))
  t.strictSame(decodeFrame(message, 'control', 'to-destination').frame, { type: 'commit' })
})

t.test('a frame is refused on every lane and in every direction but its own', async (t) => {
  for (const type of FRAME_TYPES) {
    const [frame] = fc.sample(arbitraryFrames[type], 1)
    const message = encodeFrame(frame, new Uint8Array(payloadBytesOf(frame)))
    for (const lane of LANES) {
      for (const direction of ['to-source', 'to-destination'] as const) {
        if (isAllowed(type, lane, direction)) decodeFrame(message, lane, direction)
        else
          t.throws(
            () => decodeFrame(message, lane, direction),
            { code: 'PROTOCOL' },
            `${type} ${lane} ${direction}`,
          )
      }
    }
  }
  const commit = encodeFrame({ type: 'commit' })
  t.throws(() => decodeFrame(commit, 'control', 'to-source'), {
    name: 'WireError',
    fault: 'WRONG_LANE',
    closeCode: 4103,
  })
  t.throws(() => decodeFrame(commit, 'bulk', 'to-destination'), {
    name: 'WireError',
    fault: 'WRONG_LANE',
    closeCode: 4103,
  })
})

t.test('the first message is a Hello and is small', async (t) => {
  t.strictSame(decodeHello(encodeFrame(hello)), hello)
  t.throws(() => decodeHello(encodeFrame({ type: 'clockRequest' })), {
    name: 'WireError',
    fault: 'OUT_OF_ORDER',
  })
  t.throws(() => decodeHello(withLength(Buffer.alloc(maxHelloBytes))), {
    name: 'WireError',
    fault: 'TOO_LARGE',
  })
})
