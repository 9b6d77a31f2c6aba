import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { addressOf, pageBytes, pageOf } from '@pageferry/base'
import { InstallGate, memory, uffd, ZstdCompressor } from '@pageferry/kernel'
import { PageSet } from '@pageferry/pages'
import { Child } from '@pageferry/testing/child'
import { eventually } from '@pageferry/testing/eventually'
import { lanePair, Recorder } from '@pageferry/testing/sockets'
import { defaultTerms, type FrameOf, type LaneTerms, minBulkWindowBytes } from '@pageferry/wire'
import t, { type Test } from 'tap'
import { BulkInstaller } from '../src/lanes/bulk-installer.js'
import type { FromBulkThread, Pushed } from '../src/lanes/bulk-messages.js'
import { HashLog, readHashLog } from '../src/verify/hash-log.js'
import { pages } from './fixtures/skeleton.js'

const nrPages = 64
const asId = 1
const round = 5
const none = new Float64Array(0)

async function setUp(test: Test, isHashed = false, terms?: LaneTerms) {
  const directory = mkdtempSync(join(tmpdir(), 'pageferry-bulk-'))
  test.teardown(() => rmSync(directory, { recursive: true }))
  const logPath = join(directory, 'hashes')
  HashLog.create(logPath)
  const child = new Child(nrPages)
  test.teardown(() => child.end())
  uffd.api(child.uffd, uffd.UFFD_FEATURE_EVENT_REMOVE)
  uffd.register(child.uffd, child.area, BigInt(nrPages * pageBytes), uffd.UFFDIO_REGISTER_MODE_MISSING)
  const first = pageOf(child.area)
  const gate = InstallGate.create(Float64Array.of(first, nrPages))
  const { source, destination: lane } = await lanePair(test, 'bulk', 0, terms)
  const acks = new Recorder()
  source.open(acks)
  lane.open(new Recorder())
  const pushed: Pushed[] = []
  const installer = new BulkInstaller((message: FromBulkThread) => {
    if (message.type === 'pushed') pushed.push(message.batch)
  })
  const open = () =>
    installer.open({
      ...{ kind: 'lazy', asId, round, uffd: child.uffd, gate: gate.buffer },
      ...(isHashed && { hashLog: logPath }),
    })
  let sequence = 0
  const push = (runs: Float64Array, bytes: number[], more: Partial<FrameOf<'pageBatch'>> = {}): void => {
    const frame = {
      type: 'pageBatch',
      asId,
      round,
      sequence: ++sequence,
      runs,
      zeroRuns: none,
      zstdBytes: 0,
      ...more,
    } as const
    installer.onBatch(lane, frame, pages(...bytes))
  }
  const read = (at: number): bigint => child.call('r', addressOf(first + at))
  return { child, first, gate, source, lane, acks, pushed, installer, open, push, read, logPath }
}

t.test('pushed pages go into the running process', async (t) => {
  const { first, acks, pushed, open, push, read } = await setUp(t)
  push(Float64Array.of(first, 2), [1, 2])
  t.same(pushed, [], 'before it is known where they go, they wait')
  open()
  t.match(pushed, [{ sequence: 1, installed: 2, lost: [], isClosed: false }])
  push(Float64Array.of(first + 1, 2), [9, 3], { zeroRuns: Float64Array.of(first + 5, 1) })
  t.match(pushed[1], { installed: 2 }, 'what is there stays')
  t.same([0, 1, 2, 5].map(read), [1n, 2n, 3n, 0n])
  t.notOk(pushed.some(({ payload, isUnlogged }) => payload !== undefined || isUnlogged))
  await eventually('they are acknowledged', () => acks.frames.length === 2)
  t.match(acks.frames, [
    { type: 'batchAck', sequence: 1, bytes: 2 * pageBytes },
    { type: 'batchAck', sequence: 2 },
  ])
  const outOfOrder = { code: 'PROTOCOL', closeCode: 4107 }
  t.throws(() => push(Float64Array.of(first, 1), [1], { round: round - 1 }), outOfOrder)
  t.throws(() => push(Float64Array.of(first, 1), [1], { round: round + 2 }), outOfOrder)
  t.throws(() => push(Float64Array.of(first, 1), [1], { asId: 2 }), { code: 'PROTOCOL', closeCode: 4108 })
})

t.test('pages that only the worker can place come along, and are acknowledged by it', async (t) => {
  const { first, gate, lane, acks, pushed, installer, open, push } = await setUp(t)
  open()
  gate.noteOthers()
  push(Float64Array.of(first + 7, 1), [7])
  t.equal(pushed[0].installed, 1, 'what can be installed is')
  t.ok(Buffer.from(pushed[0].payload as Uint8Array).equals(pages(7)))
  await new Promise((resolve) => setTimeout(resolve, 30))
  t.same(acks.frames, [])
  installer.taken(1, pageBytes)
  await eventually('then', () => acks.frames.length === 1)
  t.match(acks.frames, [{ type: 'batchAck', sequence: 1, bytes: pageBytes }])

  push(Float64Array.of(first + 8, 1), [8])
  lane.terminate()
  const next = await lanePair(t, 'bulk')
  const nextAcks = new Recorder()
  next.source.open(nextAcks)
  next.destination.open(new Recorder())
  const frame = { type: 'pageBatch', asId, round, sequence: 3, zeroRuns: none, zstdBytes: 0 } as const
  installer.onBatch(next.destination, { ...frame, runs: Float64Array.of(first + 9, 1) }, pages(9))
  installer.taken(2, pageBytes)
  installer.taken(3, pageBytes)
  await eventually('its own is acknowledged', () => nextAcks.frames.length > 0)
  t.match(nextAcks.frames, [{ sequence: 3 }], 'and not what came on the connection that is gone')
})

t.test('hashes of what came are on record', async (t) => {
  const { first, pushed, open, push, logPath } = await setUp(t, true)
  open()
  const runs = Float64Array.of(first, 1, first + 4, 1)
  push(runs, [1, 2], { zeroRuns: Float64Array.of(first + 9, 1) })
  const expected = new BigUint64Array(3)
  memory.hashPages(pages(1, 2, 0), 3, expected)
  const installed = readHashLog(logPath)
  t.same(installed.comparable, PageSet.of([first, 1], [first + 4, 1], [first + 9, 1]))
  t.same(installed.hashesOf(Float64Array.of(first, 1, first + 4, 1, first + 9, 1), 3), expected)
  t.equal(pushed[0].isUnlogged, false)
})

t.test('nothing is installed once the gate is closed', async (t) => {
  const { first, gate, pushed, open, push } = await setUp(t)
  open()
  gate.close()
  push(Float64Array.of(first, 1), [1])
  t.match(pushed, [{ installed: 0, isClosed: true }])
})

const agreed: LaneTerms = { ...defaultTerms, compression: 'zstd' }

function compressed(...bytes: number[]): Uint8Array {
  const content = pages(...bytes)
  const room = Buffer.alloc(content.length)
  return room.subarray(0, new ZstdCompressor(1).compress(content, room))
}

t.test('compressed pages', async (t) => {
  const { first, acks, pushed, installer, lane, open, read, logPath } = await setUp(t, true, agreed)
  open()
  const batch = { type: 'pageBatch', asId, round, sequence: 1, zeroRuns: none } as const
  const payload = compressed(1, 2, 3)
  const runs = Float64Array.of(first, 2, first + 9, 1)
  installer.onBatch(lane, { ...batch, runs, zstdBytes: payload.length }, payload)
  t.match(pushed, [{ sequence: 1, installed: 3 }])
  const expected = new BigUint64Array(3)
  memory.hashPages(pages(1, 2, 3), 3, expected)
  t.same(readHashLog(logPath).hashesOf(runs, 3), expected)
  t.same([0, 1, 9].map(read), [1n, 2n, 3n])
  await eventually('they are acknowledged', () => acks.frames.length === 1)
  t.match(acks.frames, [{ sequence: 1, bytes: 3 * pageBytes }], 'as pages: both windows count those')

  const fewer = Float64Array.of(first + 20, 2)
  const more = Float64Array.of(first + 20, 4)
  const cut = payload.subarray(0, payload.length - 1)
  const damaged = Buffer.from(payload)
  damaged[0] ^= 1
  for (const [what, wrong, content] of [
    ['more pages than the runs', fewer, payload],
    ['fewer pages', more, payload],
    ['a frame that was cut', Float64Array.of(first + 20, 3), cut],
    ['damage', Float64Array.of(first + 20, 3), damaged],
  ] as const) {
    const frame = { ...batch, sequence: 2, runs: wrong, zstdBytes: content.length }
    t.throws(() => installer.onBatch(lane, frame, content), { code: 'PROTOCOL', closeCode: 4104 }, what)
  }
  t.equal(pushed.length, 1, 'nothing of them was installed')
})

t.test('on a connection without compression a compressed batch closes the lane', async (t) => {
  const { first, source, lane, acks } = await setUp(t)
  const payload = compressed(1)
  const runs = Float64Array.of(first, 1)
  const frame = { type: 'pageBatch', asId, round, sequence: 1, runs, zeroRuns: none } as const
  source.send({ ...frame, zstdBytes: payload.length }, payload)
  await eventually('the lane is closed', () => acks.losses.length === 1)
  t.match(acks.losses[0].message, /BAD_VALUE.*connection without compression/)
  t.notOk(lane.isOpen)
})

t.test('what waits is bounded by the window, in pages and not in what they take on the way', async (t) => {
  const windowBytes = minBulkWindowBytes
  const { first, installer, lane } = await setUp(t, false, { ...agreed, windowBytes })
  const payload = compressed(...Array.from({ length: 64 }, () => 5))
  const runs = Float64Array.of(first, 64)
  const frame = { type: 'pageBatch', asId, round, runs, zeroRuns: none, zstdBytes: payload.length } as const
  const nrBatches = windowBytes / (64 * pageBytes)
  t.ok(payload.length * nrBatches < windowBytes / 100)
  for (let sequence = 1; sequence <= nrBatches; sequence++) {
    installer.onBatch(lane, { ...frame, sequence }, payload)
  }
  t.throws(() => installer.onBatch(lane, { ...frame, sequence: nrBatches + 1 }, payload), {
    code: 'PROTOCOL',
    closeCode: 4109,
  })
})
