import fc, { type Arbitrary } from 'fast-check'
import {
  COMPRESSIONS,
  type Frame,
  type FrameOf,
  type FrameType,
  imagePieceBytes,
  maxBatchPages,
  maxBulkLanes,
  maxBulkWindowBytes,
  maxFaultPages,
  maxGhostBytes,
  maxImageBytes,
  maxPid,
  maxPort,
  minBulkWindowBytes,
  pageBytesOf,
  pageLimit,
} from '../../src/index.js'

type Values<T extends FrameType> = { [K in keyof Omit<FrameOf<T>, 'type'>]: Arbitrary<FrameOf<T>[K]> }

/** fast-check also makes objects without a prototype, which no decoder returns. */
function record<T>(values: { [K in keyof T]: Arbitrary<T[K]> }): Arbitrary<T> {
  return fc.record(values, { noNullPrototype: true })
}

const u32 = fc.integer({ min: 0, max: 2 ** 32 - 1 })
const id = fc.integer({ min: 1, max: 2 ** 32 - 1 })
const count = fc.maxSafeNat()
const page = fc.integer({ min: 0, max: pageLimit })
const pid = fc.integer({ min: 1, max: maxPid })
const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })
const duration = fc.double({ min: 0, noNaN: true, noDefaultInfinity: true }).map((ms) => ms + 0)
// Whole characters: a lone surrogate has no UTF-8.
const text = (maxLength: number) =>
  fc.string({ unit: 'grapheme', maxLength }).filter((s) => s.length <= maxLength)
const name = text(64).filter((s) => !s.includes('\0'))
const json = fc.oneof(
  fc.constant(''),
  fc.dictionary(text(8), fc.jsonValue()).map((value) => JSON.stringify(value)),
)
const bytes32 = fc.oneof(fc.uint8Array({ minLength: 32, maxLength: 32 }), fc.constant(new Uint8Array(0)))
const errorCode = fc.stringMatching(/^[A-Z][A-Z_]{0,30}$/)

/** Ascending runs from gaps and lengths; `maxGap` small makes them dense. */
function runTable(maxRuns: number, maxLength: number, minRuns = 0): Arbitrary<Float64Array> {
  const gap = fc.oneof(fc.integer({ min: 0, max: 3 }), fc.integer({ min: 0, max: 2 ** 28 }))
  const run = fc.tuple(gap, fc.integer({ min: 1, max: maxLength }))
  return fc.array(run, { minLength: minRuns, maxLength: maxRuns }).map((runs) => {
    let end = 0
    return Float64Array.from(
      runs.flatMap(([skip, length]) => {
        const first = end + skip
        end = first + length
        return [first, length]
      }),
    )
  })
}

/** Two disjoint tables: one is made and its runs are dealt out. */
function twoTables(
  table: Arbitrary<Float64Array>,
): Arbitrary<{ runs: Float64Array; zeroRuns: Float64Array }> {
  return fc.tuple(table, fc.infiniteStream(fc.boolean())).map(([all, coins]) => {
    const runs: number[] = []
    const zeroRuns: number[] = []
    for (let i = 0; i < all.length; i += 2) (coins.next().value ? runs : zeroRuns).push(all[i], all[i + 1])
    return { runs: Float64Array.from(runs), zeroRuns: Float64Array.from(zeroRuns) }
  })
}

const hostFacts = record({
  kernelRelease: name,
  machine: name,
  bootId: name,
  vdsoSha256: bytes32,
  xcr0: u64,
  xsaveBytes: u32,
  cpuFlags: fc.array(name, { maxLength: 5 }),
  vdsoPages: page,
  vvarPages: page,
})

const neededFile = record({
  path: name.map((s) => `/${s}`),
  bytes: count,
  write: fc.boolean(),
  exactSize: fc.boolean(),
  locks: fc.array(record({ whole: fc.boolean(), exclusive: fc.boolean(), start: u64, length: u64 }), {
    maxLength: 3,
  }),
})

function plain<T extends FrameType>(type: T, values: Values<T>): Arbitrary<Frame> {
  return record({ type: fc.constant(type), ...values }) as unknown as Arbitrary<Frame>
}

const errorFields = { code: errorCode, message: text(200), detailsJson: json }
const asId = id
const round = id

/** Valid frames of every type. A new type without an entry does not compile. */
export const arbitraryFrames: Record<FrameType, Arbitrary<Frame>> = {
  hello: fc.constantFrom('control' as const, 'fault' as const, 'bulk' as const).chain((lane) =>
    plain('hello', {
      versions: fc.array(id, { minLength: 1, maxLength: 5 }),
      migrationId: fc.stringMatching(/^[A-Za-z0-9_-]{1,64}$/),
      token: fc.stringMatching(/^[\x21-\x7e]{1,128}$/),
      lane: fc.constant(lane),
      laneIndex: lane === 'bulk' ? fc.integer({ min: 0, max: maxBulkLanes - 1 }) : fc.constant(0),
      resume: fc.boolean(),
      compressions: fc.array(fc.stringMatching(/^[a-z0-9-]{1,64}$/), { maxLength: 8 }),
    }),
  ),
  welcome: plain('welcome', {
    version: id,
    nrBulkLanes: fc.integer({ min: 1, max: maxBulkLanes }),
    compression: fc.constantFrom(...COMPRESSIONS),
    windowBytes: fc.integer({ min: minBulkWindowBytes, max: maxBulkWindowBytes }),
    faultPort: fc.integer({ min: 1, max: maxPort }),
  }),
  refusal: plain('refusal', errorFields),
  begin: plain('begin', {
    source: hostFacts,
    asId,
    pid,
    comm: text(16),
    tids: fc.array(pid, { minLength: 1, maxLength: 6 }),
    residentPages: page,
    mode: fc.constantFrom('hybrid', 'precopy', 'postcopy'),
    verify: fc.constantFrom('off', 'after-resume', 'before-resume'),
    files: fc.array(neededFile, { maxLength: 4 }),
    monotonicNs: u64,
    boottimeNs: u64,
  }),
  prepared: plain('prepared', { destination: hostFacts, pid }),
  image: fc
    .tuple(fc.integer({ min: 0, max: maxImageBytes / imagePieceBytes - 1 }), fc.integer({ min: 1, max: 300 }))
    .chain(([piece, lastBytes]) =>
      plain('image', {
        asId,
        round,
        name: fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/),
        totalBytes: fc.constant(piece * imagePieceBytes + lastBytes),
        offset: fc.constant(piece * imagePieceBytes),
      }),
    ),
  ghost: plain('ghost', {
    ghostId: id,
    path: fc.stringMatching(/^\/[a-z]{0,20}$/),
    mode: fc.integer({ min: 0, max: 0o177_777 }),
    uid: u32,
    gid: u32,
    size: fc.integer({ min: 0, max: maxGhostBytes }),
    atimeNs: u64,
    mtimeNs: u64,
    tmpfileFlags: u32,
  }),
  ghostData: plain('ghostData', {
    ghostId: id,
    offset: fc.integer({ min: 0, max: maxGhostBytes }),
    bytes: fc.integer({ min: 1, max: 5000 }),
    hole: fc.boolean(),
  }),
  ghostGone: plain('ghostGone', { ghostId: id }),
  roundBegin: plain('roundBegin', { asId, round, final: fc.boolean() }),
  roundEnd: plain('roundEnd', {
    asId,
    round,
    final: fc.boolean(),
    batchesPerLane: fc.array(count, { maxLength: maxBulkLanes }),
  }),
  roundApplied: plain('roundApplied', { asId, round, pages: count, durationMs: duration }),
  dumpEnd: plain('dumpEnd', { freezeMonotonicNs: u64 }),
  ready: plain('ready', { restoreMs: duration, partsJson: json }),
  commit: plain('commit', {}),
  running: plain('running', { resumeMs: duration, pid }),
  progress: plain('progress', { pendingPages: page, faults: count, installedPages: count }),
  drained: plain('drained', { statsJson: json, errorJson: json }),
  released: plain('released', {}),
  kept: plain('kept', {}),
  abandoned: plain('abandoned', { reason: text(200) }),
  cancel: plain('cancel', errorFields),
  failed: plain('failed', errorFields),
  clockRequest: plain('clockRequest', {}),
  clockReply: plain('clockReply', {
    monotonicNs: u64,
    boottimeNs: u64,
    kernelMonotonicNs: u64,
    kernelBoottimeNs: u64,
  }),
  hashRequest: plain('hashRequest', { asId, runs: runTable(20, 50, 1) }),
  pageHashes: plain('pageHashes', { asId, runs: runTable(20, 50) }),
  pageRequest: plain('pageRequest', {
    asId,
    round,
    requestId: id,
    page: fc.integer({ min: 0, max: pageLimit - maxFaultPages }),
    nrPages: fc.integer({ min: 1, max: maxFaultPages }),
    ahead: fc.boolean(),
  }),
  pageReply: fc
    .tuple(fc.integer({ min: 0, max: pageLimit - maxFaultPages }), twoTables(denseTable(maxFaultPages)))
    .chain(([first, tables]) =>
      plain('pageReply', {
        asId,
        round,
        requestId: id,
        page: fc.constant(first),
        nrPages: fc.constant(maxFaultPages),
        runs: fc.constant(moved(tables.runs, first)),
        zeroRuns: fc.constant(moved(tables.zeroRuns, first)),
        zstdBytes: zstdBytes(tables.runs),
      }),
    ),
  pageBatch: twoTables(runTable(20, maxBatchPages / 64, 1)).chain(({ runs, zeroRuns }) =>
    plain('pageBatch', {
      asId,
      round,
      sequence: fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
      runs: fc.constant(runs),
      zeroRuns: fc.constant(zeroRuns),
      zstdBytes: zstdBytes(runs),
    }),
  ),
  batchAck: plain('batchAck', {
    sequence: fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
    bytes: count,
  }),
  discard: plain('discard', { asId, round, runs: runTable(20, 2 ** 28, 1) }),
}

/** Mostly not compressed, and never to what is not smaller. */
function zstdBytes(runs: Float64Array): Arbitrary<number> {
  const most = Math.max(0, pageBytesOf({ runs }) - 1)
  return fc.oneof(fc.constant(0), fc.integer({ min: 0, max: most }))
}

/** Runs within the first `nrPages` pages. */
function denseTable(nrPages: number): Arbitrary<Float64Array> {
  return fc.uniqueArray(fc.integer({ min: 0, max: nrPages - 1 }), { maxLength: nrPages }).map((pages) => {
    pages.sort((a, b) => a - b)
    return Float64Array.from(pages.flatMap((one) => [one, 1]))
  })
}

function moved(runs: Float64Array, by: number): Float64Array {
  return runs.map((value, i) => (i % 2 === 0 ? value + by : value))
}
