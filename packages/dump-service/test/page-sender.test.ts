import { pageBytes } from '@pageferry/base'
import { PageSet } from '@pageferry/pages'
import { defaultTerms, maxBatchPages } from '@pageferry/wire'
import t, { type Test } from 'tap'
import { BulkLane } from '../src/lanes/bulk-lane.js'
import { BulkCompression } from '../src/lanes/lane-compression.js'
import type { Pace } from '../src/rounds/pacing.js'
import { PageReader } from '../src/rounds/page-reader.js'
import { type SendOptions, sendPages } from '../src/rounds/page-sender.js'
import { areaMap, connectBulk, contentOf, Receiver, startPages, type Workload } from './fixtures/workload.js'

/** More than the windows of three lanes hold. */
const nrPages = 4000
const indices = Array.from({ length: nrPages }, (_, i) => i)
const content = indices.filter((i) => contentOf(i) !== 0n)
const never = new AbortController().signal

async function prepare(
  test: Test,
  workload: Workload,
  nrLanes: number,
  compression?: BulkCompression,
  terms = defaultTerms,
) {
  const lanes = Array.from({ length: nrLanes }, () => new BulkLane({ compression }))
  const receiver = new Receiver(workload.first)
  const connections = await Promise.all(
    lanes.map((lane, index) => connectBulk(test, lane, receiver, index, () => {}, terms)),
  )
  const idle = async (): Promise<void> => {
    while (lanes.some((lane) => !lane.isIdle)) await BulkLane.changed(lanes, never)
  }
  return { lanes, receiver, connections, idle, reader: new PageReader(workload.pid, workload.memFd, null) }
}

const optionsFor = (workload: Workload, more: Partial<SendOptions> = {}): SendOptions => ({
  asId: 1,
  round: 2,
  map: areaMap(workload.first, nrPages, 'anon'),
  final: false,
  signal: never,
  ...more,
})

t.test('sending a set of pages', async (t) => {
  const workload = await startPages(t, nrPages)
  const all = PageSet.of([workload.first, nrPages])

  for (const nrLanes of [1, 3]) {
    await t.test(`every page arrives once, over ${nrLanes} lane(s); zeros are left out`, async (t) => {
      const { lanes, receiver, reader, idle } = await prepare(t, workload, nrLanes)
      const [sentRuns, zeroRuns] = [new PageSet(), new PageSet()]
      let progress = 0
      const sent = await sendPages(all, reader, lanes, {
        ...optionsFor(workload),
        onSent: (runs) => sentRuns.addRuns(runs),
        onZero: (runs) => zeroRuns.addRuns(runs),
        onVanished: () => t.fail('nothing vanishes'),
        onProgress: (pages) => {
          progress = pages
        },
      })
      await idle()
      t.same(receiver.wrong(content), [])
      t.equal(receiver.pages.size, content.length)
      t.match(sent, { pages: nrPages, zeroPages: nrPages / 5 })
      t.equal(
        sent.bytes,
        lanes.reduce((sum, lane) => sum + lane.bytesSent, 0),
      )
      t.ok(sent.bytes > content.length * pageBytes && sent.bytes < (content.length + 40) * pageBytes)
      t.same(sent.batchesPerLane, receiver.perLane, 'the barrier counts what arrives')
      t.ok(
        sent.batchesPerLane.every((batches) => batches > 0),
        'no lane is idle',
      )
      t.ok(receiver.batches.every(({ asId, round }) => asId === 1 && round === 2))
      t.equal(sentRuns.count, content.length)
      t.equal(zeroRuns.count, nrPages / 5)
      t.equal(progress, nrPages)
    })
  }

  for (const [setting, agreed, nrLanes] of [
    ['zstd', 'zstd', 1],
    ['zstd', 'zstd', 3],
    ['zstd', 'none', 1],
    ['off', 'zstd', 1],
  ] as const) {
    const name = `compression ${setting}, of which the lane allows ${agreed}, over ${nrLanes} lane(s)`
    await t.test(name, async (t) => {
      const settings = { compression: setting, bulkLanes: nrLanes, maxBandwidthMbit: 0 }
      const compression = new BulkCompression(settings, () => {})
      const terms = { ...defaultTerms, compression: agreed }
      const { lanes, receiver, reader, idle } = await prepare(t, workload, nrLanes, compression, terms)
      const sent = await sendPages(all, reader, lanes, optionsFor(workload, { final: true }))
      await idle()
      t.same(receiver.wrong(indices), [])
      t.equal(sent.pageBytes, content.length * pageBytes)
      const onWire = lanes.reduce((sum, lane) => sum + lane.bytesSent, 0)
      t.equal(sent.bytes, onWire)
      if (setting === 'zstd' && agreed === 'zstd') {
        t.ok(receiver.batches.every(({ zstdBytes }) => zstdBytes > 0))
        t.ok(onWire < sent.pageBytes / 20, `${onWire} bytes for ${sent.pageBytes}`)
        t.equal(compression.counts.pages, content.length)
        t.ok(compression.counts.bytes > 0 && compression.counts.bytes < onWire)
      } else {
        t.ok(receiver.batches.every(({ zstdBytes }) => zstdBytes === 0))
        t.same(compression.counts, { pages: 0, bytes: 0 })
      }
    })
  }

  await t.test('the final round sends zeros too', async (t) => {
    const { lanes, receiver, reader, idle } = await prepare(t, workload, 2)
    const sent = await sendPages(all, reader, lanes, optionsFor(workload, { final: true }))
    await idle()
    t.same(receiver.wrong(indices), [])
    t.match(sent, { pages: nrPages, zeroPages: nrPages / 5 })
  })

  await t.test(
    'zeros of a private file mapping hide what is in the file: they travel in every round',
    async (t) => {
      const { lanes, receiver, reader, idle } = await prepare(t, workload, 1)
      // The first thousand pages are the file's, the others anonymous.
      const map = areaMap(workload.first, 1000, 'file-private')
      await sendPages(all, reader, lanes, optionsFor(workload, { map }))
      await idle()
      t.same(receiver.wrong(indices.slice(0, 1000)), [])
      t.equal(receiver.pages.size, 1000 + (nrPages - 1000) * 0.8)
    },
  )

  await t.test('a batch of nothing but left-out zeros is no batch', async (t) => {
    const { lanes, receiver, reader, idle } = await prepare(t, workload, 1)
    const zeros = PageSet.of([workload.first + 4, 1], [workload.first + 9, 1])
    const sent = await sendPages(zeros, reader, lanes, optionsFor(workload))
    await idle()
    t.match(sent, { pages: 2, zeroPages: 2, bytes: 0, batchesPerLane: [0] })
    t.same(receiver.batches, [])
    t.match(await sendPages(new PageSet(), reader, lanes, optionsFor(workload)), {
      pages: 0,
      batchesPerLane: [0],
    })
    const signal = AbortSignal.timeout(10_000)
    for (let i = 0; i < 20; i++) await sendPages(zeros, reader, lanes, optionsFor(workload, { signal }))
    t.ok(lanes[0].hasRoom, 'its buffer is free again each time')
  })

  await t.test('pages that vanished are reported', async (t) => {
    const { lanes, receiver, reader, idle } = await prepare(t, workload, 1)
    // Page 0 is never mapped.
    const vanished: number[] = []
    await sendPages(PageSet.of([0, 1], [workload.first, 2]), reader, lanes, {
      ...optionsFor(workload),
      onVanished: (runs) => vanished.push(...runs),
    })
    await idle()
    t.same(vanished, [0, 1])
    t.same(receiver.wrong([0, 1]), [])
    const final = optionsFor(workload, { final: true })
    await t.rejects(sendPages(PageSet.of([0, 1]), reader, lanes, final), { code: 'WORKLOAD_CHANGED' })
  })

  await t.test('a round waits its turn before each batch, and says what it has sent', async (t) => {
    const { lanes, receiver, reader, idle } = await prepare(t, workload, 1)
    const turns: number[] = []
    let bytes = 0
    const pacing: Pace = {
      batchPages: maxBatchPages,
      turn: async () => {
        await idle()
        turns.push(receiver.batches.length)
        return false
      },
      sent: (more) => {
        bytes += more
      },
    }
    const sent = await sendPages(all, reader, lanes, optionsFor(workload, { pacing }))
    t.same(
      turns,
      turns.map((_, i) => i),
      'one batch for each turn',
    )
    t.ok(turns.length >= nrPages / maxBatchPages)
    t.equal(bytes, sent.bytes)
  })

  await t.test('an abort ends it, also while no lane has room', async (t) => {
    const { lanes, receiver, reader } = await prepare(t, workload, 1)
    receiver.acknowledges = false
    const controller = new AbortController()
    let progress = 0
    const sending = sendPages(all, reader, lanes, {
      ...optionsFor(workload, { signal: controller.signal }),
      onProgress: (pages) => {
        progress = pages
      },
    })
    setTimeout(() => controller.abort(new Error('enough')), 300)
    await t.rejects(sending, { message: 'enough' })
    t.ok(progress >= maxBatchPages && progress < nrPages, `stopped by the window after ${progress} pages`)
    t.notOk(lanes[0].hasRoom)
  })
})
