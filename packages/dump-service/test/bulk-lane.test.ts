import { randomBytes } from 'node:crypto'
import { pageBytes } from '@pageferry/base'
import { eventually } from '@pageferry/testing/eventually'
import {
  bulkWindowBatches,
  bulkWindowBytes,
  defaultTerms,
  maxBatchPages,
  maxPayloadBytes,
} from '@pageferry/wire'
import t from 'tap'
import { BulkLane } from '../src/lanes/bulk-lane.js'
import { BulkCompression } from '../src/lanes/lane-compression.js'
import { connectBulk, Receiver } from './fixtures/workload.js'

const none = new Float64Array(0)
const never = new AbortController().signal

/** Sends a batch of pages from `first` on. */
function sendPages(bulk: BulkLane, first: number, nrPages: number): void {
  const runs = Float64Array.of(first, nrPages)
  bulk.send({ asId: 1, round: 1, runs, zeroRuns: none }, bulk.takeBuffer(), nrPages * pageBytes)
}

function sendZeros(bulk: BulkLane, first: number): void {
  const zeroRuns = Float64Array.of(first, 1)
  bulk.send({ asId: 1, round: 1, runs: none, zeroRuns }, bulk.takeBuffer(), 0)
}

/** Sends for as long as there is room; buffers come back when the kernel has taken their bytes. */
async function fill(bulk: BulkLane, send: () => void, atMost: number): Promise<number> {
  let nr = 0
  for (let idle = 0; idle < 20 && nr < atMost; ) {
    if (bulk.hasRoom) {
      send()
      nr++
      idle = 0
    } else {
      await new Promise((resolve) => setTimeout(resolve, 5))
      idle++
    }
  }
  return nr
}

t.test('no more bytes are in flight than the window holds', async (t) => {
  for (const nrPages of [maxBatchPages, 200, 150]) {
    const bulk = new BulkLane()
    const receiver = new Receiver(0)
    receiver.acknowledges = false
    await connectBulk(t, bulk, receiver)
    const nr = await fill(bulk, () => sendPages(bulk, 16, nrPages), 10)
    await eventually('all arrive', () => receiver.batches.length === nr)
    const bytes = nr * nrPages * pageBytes
    t.ok(bytes <= bulkWindowBytes, `${nr} batches of ${nrPages} pages`)
    t.ok(bytes > bulkWindowBytes - maxBatchPages * pageBytes, 'and the window is used')

    bulk.acknowledge(1)
    t.ok(bulk.hasRoom, 'an acknowledgement makes room')
    t.notOk(bulk.isIdle)
    for (let sequence = 2; sequence <= nr; sequence++) bulk.acknowledge(sequence)
    t.ok(bulk.isIdle)
  }
})

const zstd = { ...defaultTerms, compression: 'zstd' } as const
const settings = { compression: 'zstd', bulkLanes: 1, maxBandwidthMbit: 0 } as const

t.test('compressed pages count as pages: the destination has to hold them', async (t) => {
  const windowBytes = 2 * maxPayloadBytes
  const bulk = new BulkLane({ windowBytes, compression: new BulkCompression(settings, () => {}) })
  const receiver = new Receiver(16)
  receiver.acknowledges = false
  await connectBulk(t, bulk, receiver, 0, () => {}, { ...zstd, windowBytes })
  const send = () => {
    const buffer = bulk.takeBuffer()
    buffer.pages.fill(7)
    const runs = Float64Array.of(16, maxBatchPages)
    bulk.send({ asId: 1, round: 1, runs, zeroRuns: none }, buffer, maxPayloadBytes)
  }
  t.equal(await fill(bulk, send, 10), 2, "and a window of one's own is kept")
  await eventually('they arrive', () => receiver.batches.length === 2)
  t.ok(bulk.bytesSent < 2000)
  t.equal(receiver.pages.get(255)?.[0], 0x0707070707070707n)
  t.match(bulk.lost(), [{ bytes: maxPayloadBytes }, { bytes: maxPayloadBytes }])
})

t.test('what does not become smaller travels as it is', async (t) => {
  const compression = new BulkCompression(settings, () => {})
  const bulk = new BulkLane({ compression })
  const receiver = new Receiver(16)
  await connectBulk(t, bulk, receiver, 0, () => {}, zstd)
  const noise = randomBytes(8 * pageBytes)
  for (let page = 0; page < 8; page++) {
    // The receiver wants the first and the last word of a page to be the same.
    noise.copy(noise, (page + 1) * pageBytes - 8, page * pageBytes, page * pageBytes + 8)
  }
  const buffer = bulk.takeBuffer()
  noise.copy(buffer.pages)
  bulk.send({ asId: 1, round: 1, runs: Float64Array.of(16, 8), zeroRuns: none }, buffer, noise.length)
  await eventually('it is acknowledged', () => bulk.isIdle)
  t.match(receiver.batches, [{ zstdBytes: 0 }])
  for (let page = 0; page < 8; page++) {
    t.equal(receiver.pages.get(page)?.[0], noise.readBigUInt64LE(page * pageBytes))
  }
  t.same(compression.counts, { pages: 0, bytes: 0 })
})

t.test('automatic: a lane that is never held back sends pages as they are', async (t) => {
  const changes: boolean[] = []
  const compression = new BulkCompression({ ...settings, compression: 'auto' }, (isOn) => changes.push(isOn))
  const bulk = new BulkLane({ compression })
  const receiver = new Receiver(16)
  await connectBulk(t, bulk, receiver, 0, () => {}, zstd)
  for (let i = 0; i < 30; i++) {
    sendPages(bulk, 16, 100)
    await eventually('it is acknowledged', () => bulk.isIdle)
  }
  t.ok(receiver.batches.every(({ zstdBytes }) => zstdBytes === 0))
  t.same(changes, [])
})

t.test(
  'who answers faults hears when a lane begins to compress, and when its connection is gone',
  async (t) => {
    const changes: boolean[] = []
    const bulk = new BulkLane({ compression: new BulkCompression(settings, (isOn) => changes.push(isOn)) })
    await connectBulk(t, bulk, new Receiver(16), 0, () => {}, zstd)
    sendPages(bulk, 16, 1)
    sendPages(bulk, 16, 1)
    t.same(changes, [true])
    bulk.lost()
    t.same(changes, [true, false])
  },
)

t.test('nor more batches, however small', async (t) => {
  const bulk = new BulkLane()
  const receiver = new Receiver(0)
  receiver.acknowledges = false
  await connectBulk(t, bulk, receiver)
  t.equal(await fill(bulk, () => sendZeros(bulk, 16), bulkWindowBatches + 10), bulkWindowBatches)
  t.notOk(bulk.hasRoom)
  bulk.acknowledge(7)
  t.ok(bulk.hasRoom)
  t.equal(bulk.batches, bulkWindowBatches)
})

t.test('an acknowledgement of what is not in flight closes the lane', async (t) => {
  const bulk = new BulkLane()
  t.throws(() => bulk.acknowledge(1), {
    code: 'PROTOCOL',
    closeCode: 4107,
    message: 'batch 1 is not in flight',
  })

  const receiver = new Receiver(0)
  let lost = 0
  const { destination } = await connectBulk(t, bulk, receiver, 0, () => lost++)
  sendPages(bulk, 16, 1)
  await eventually('it is acknowledged', () => bulk.isIdle)
  destination.send({ type: 'batchAck', sequence: 1, bytes: pageBytes })
  await eventually('the lane is lost', () => lost === 1)
  t.notOk(bulk.isUp)
  t.notOk(bulk.hasRoom, 'a lane that is down has no room')
})

t.test('a lost lane gives back what was in flight, and starts anew', async (t) => {
  const bulk = new BulkLane()
  const receiver = new Receiver(0)
  receiver.acknowledges = false
  const first = await connectBulk(t, bulk, receiver)
  sendPages(bulk, 16, 2)
  sendZeros(bulk, 40)
  sendPages(bulk, 32, 3)
  await eventually('they arrive', () => receiver.batches.length === 3)
  bulk.acknowledge(1)
  first.destination.terminate()
  await first.source.closed()
  t.same(bulk.lost(), [
    { bytes: 0, runs: none, zeroRuns: Float64Array.of(40, 1) },
    { bytes: 3 * pageBytes, runs: Float64Array.of(32, 3), zeroRuns: none },
  ])
  t.same(bulk.lost(), [], 'once')
  t.ok(bulk.isIdle)

  sendPages(bulk, 50, 1)
  t.same(
    bulk.lost(),
    [{ bytes: pageBytes, runs: Float64Array.of(50, 1), zeroRuns: none }],
    'what was sent in vain too',
  )

  receiver.acknowledges = true
  await connectBulk(t, bulk, receiver)
  t.throws(
    () => bulk.acknowledge(2),
    { code: 'PROTOCOL', closeCode: 4107 },
    'the old connection cannot acknowledge any more',
  )
  const nr = await fill(bulk, () => sendPages(bulk, 16, maxBatchPages), 20)
  t.equal(nr, 20, 'no buffer was lost')
  await eventually('all are acknowledged', () => bulk.isIdle)
  receiver.acknowledges = false
  const whole = bulkWindowBytes / (maxBatchPages * pageBytes)
  t.equal(await fill(bulk, () => sendPages(bulk, 16, maxBatchPages), 20), whole, 'the window is whole again')
})

t.test('waiting for a change', async (t) => {
  const bulk = new BulkLane()
  const receiver = new Receiver(0)
  receiver.acknowledges = false

  const attached = BulkLane.changed([bulk], never)
  await connectBulk(t, bulk, receiver)
  await attached
  sendPages(bulk, 16, 1)
  await eventually('the buffer is back', () => receiver.batches.length === 1)
  const acknowledged = BulkLane.changed([bulk], never)
  bulk.acknowledge(1)
  await acknowledged
  const lost = BulkLane.changed([bulk], never)
  bulk.lost()
  await lost

  const controller = new AbortController()
  const aborted = BulkLane.changed([bulk], controller.signal)
  controller.abort()
  await aborted
  await BulkLane.changed([bulk], controller.signal)
  t.pass('an attachment, an acknowledgement, a loss and an abort end it')
})

t.test('waiting leaves nothing behind on a lane that never changes', async (t) => {
  const [busy, down] = [new BulkLane(), new BulkLane()]
  // Each wait that left a link in a chain would be a stack frame when the lane comes back at last.
  for (let i = 0; i < 50_000; i++) {
    const changed = BulkLane.changed([busy, down], never)
    busy.lost()
    await changed
  }
  t.doesNotThrow(() => down.lost())
})
