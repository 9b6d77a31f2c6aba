import { createLogger, pageBytes, pagesInRuns } from '@pageferry/base'
import { PageSet, WriteHistory } from '@pageferry/pages'
import { eventually } from '@pageferry/testing/eventually'
import { lanePair, Recorder } from '@pageferry/testing/sockets'
import {
  defaultTerms,
  type Frame,
  type FrameOf,
  type LaneTerms,
  maxBatchPages,
  maxFaultPages,
} from '@pageferry/wire'
import type { Lane } from '@pageferry/wire/sockets'
import { PageDecoder } from '@pageferry/wire/sockets'
import t, { type Test } from 'tap'
import { BulkLane } from '../src/lanes/bulk-lane.js'
import { BulkCompression } from '../src/lanes/lane-compression.js'
import { FaultFeed } from '../src/lazy/fault-feed.js'
import { FaultServer } from '../src/lazy/fault-server.js'
import { Push, type PushOptions } from '../src/lazy/push.js'
import { SentBitmap } from '../src/lazy/sent-bitmap.js'
import type { Pace } from '../src/rounds/pacing.js'
import { connectBulk, contentOf, pagesOf, Receiver, startPages, type Workload } from './fixtures/workload.js'

const nrPages = 3000
const asId = 1
const round = 4
const log = createLogger('test', 'silent')

interface Setup {
  push: Push
  faults: FaultServer
  bulk: BulkLane[]
  receiver: Receiver
  /** The destination's end of the fault lane, and what came in on it. */
  fault: Lane
  replies: Recorder
  /** Starts to push. */
  run(): void
  /** Sends a request; the ids count from 1. */
  request(page: number, nrPages?: number, more?: Partial<FrameOf<'pageRequest'>>): void
}

async function setUp(
  test: Test,
  workload: Workload,
  lazy: PageSet,
  more: {
    history?: WriteHistory
    pacing?: Pace
    compression?: BulkCompression
    hold?: PushOptions['hold']
    /** Of the fault lane. */
    terms?: LaneTerms
  } = {},
): Promise<Setup> {
  const { compression, terms, ...options } = more
  const bulk = [new BulkLane({ compression })]
  const receiver = new Receiver(workload.first)
  const sent = new SentBitmap(lazy.runTable())
  const feed = new FaultFeed()
  const faults = new FaultServer(feed)
  const push = new Push({ ...workload, asId, round, sent, faults: feed, lanes: bulk, log, ...options })
  faults.serve({ pid: workload.pid, asId, round, sent: sent.shared })
  const { source, destination: fault } = await lanePair(test, 'fault', 0, terms)
  source.open({
    onFrame: (frame) => {
      if (frame.type !== 'pageRequest') throw new Error(frame.type)
      faults.onFrame(source, frame)
    },
    onLost: () => {},
  })
  const replies = new Recorder()
  fault.open(replies)
  const controller = new AbortController()
  let running: Promise<void> = Promise.resolve()
  test.teardown(async () => {
    controller.abort()
    await running
    faults.close()
  })
  let requestId = 0
  return {
    push,
    faults,
    bulk,
    receiver,
    fault,
    replies,
    run: () => {
      running = push.run(controller.signal)
    },
    request: (page, nrPages = 1, more = {}) => {
      const frame: Frame = {
        type: 'pageRequest',
        asId,
        round,
        requestId: ++requestId,
        page,
        nrPages,
        ahead: false,
        ...more,
      }
      fault.send(frame)
    },
  }
}

t.test('serving', async (t) => {
  const workload = await startPages(t, nrPages)
  const { first } = workload
  const all = PageSet.of([first, nrPages])
  const indices = Array.from({ length: nrPages }, (_, i) => i)

  await t.test('everything is pushed once, zeros as such', async (t) => {
    const { push, bulk, receiver, run } = await setUp(t, workload, all)
    await connectBulk(t, bulk[0], receiver)
    run()
    await eventually('all arrive', () => receiver.pages.size === nrPages)
    t.same(receiver.wrong(indices), [])
    t.equal(push.pushedPages, nrPages)
    t.ok(receiver.batches.every((batch) => batch.asId === asId && batch.round === round))
  })

  await t.test('a request is answered with the right bytes, and those pages are not pushed', async (t) => {
    const { bulk, receiver, replies, run, request } = await setUp(t, workload, all)
    request(first + 100)
    request(first + 104)
    request(first + 200, maxFaultPages)
    await eventually('the replies arrive', () => replies.frames.length === 3)
    const answered = new Receiver(first)
    for (const [i, frame] of replies.frames.entries()) {
      if (frame.type !== 'pageReply') throw new Error(frame.type)
      answered.note(frame.runs, frame.zeroRuns, replies.payloads[i])
    }
    t.match(replies.frames[0], { asId, round, requestId: 1, page: first + 100, nrPages: 1 })
    t.match(replies.frames[2], { requestId: 3, page: first + 200, nrPages: maxFaultPages })
    const asked = [100, 104, ...indices.slice(200, 200 + maxFaultPages)]
    t.same(answered.wrong(asked), [])
    t.equal(answered.pages.size, asked.length)

    await connectBulk(t, bulk[0], receiver)
    run()
    const rest = indices.filter((i) => !asked.includes(i))
    await eventually('the rest is pushed', () => receiver.pages.size === rest.length)
    t.same(receiver.wrong(rest), [])

    request(first + 100)
    await eventually('it is answered again', () => replies.frames.length === 4)
    t.ok(
      Buffer.from(replies.payloads[3]).equals(replies.payloads[0]),
      'a page may be asked for twice: the original is frozen',
    )
  })

  await t.test('replies of several pages are compressed, where that was agreed and asked for', async (t) => {
    const agreed = { ...defaultTerms, compression: 'zstd' } as const
    const { faults, replies, request } = await setUp(t, workload, all, { terms: agreed })
    request(first + 200, maxFaultPages)
    await eventually('it is answered', () => replies.frames.length === 1)
    faults.compress(true)
    request(first + 200, maxFaultPages)
    request(first + 100)
    await eventually('these too', () => replies.frames.length === 3)
    t.match(
      replies.frames.map((frame) => (frame as FrameOf<'pageReply'>).zstdBytes > 0),
      [false, true, false],
      'not before, and not a single page',
    )
    const [plain, compressed] = replies.payloads
    t.ok(compressed.length < plain.length / 5)
    const pages = new PageDecoder().pagesOf(replies.frames[1] as FrameOf<'pageReply'>, compressed)
    t.ok(Buffer.from(pages).equals(plain))
    t.match(faults.compressed, { pages: plain.length / pageBytes, bytes: compressed.length })

    const other = await setUp(t, workload, all)
    other.faults.compress(true)
    other.request(first + 200, maxFaultPages)
    await eventually('it is answered', () => other.replies.frames.length === 1)
    t.match(other.replies.frames, [{ zstdBytes: 0 }], 'a destination that cannot gets pages')
  })

  await t.test('compressed batches, pushed', async (t) => {
    const compression = new BulkCompression(
      { compression: 'zstd', bulkLanes: 1, maxBandwidthMbit: 0 },
      () => {},
    )
    const { bulk, receiver, run } = await setUp(t, workload, all, { compression })
    const agreed = { ...defaultTerms, compression: 'zstd' } as const
    await connectBulk(t, bulk[0], receiver, 0, () => {}, agreed)
    run()
    await eventually('all arrive', () => receiver.pages.size === nrPages)
    t.same(receiver.wrong(indices), [])
    t.equal(compression.counts.pages, nrPages * 0.8)
  })

  await t.test(
    'ahead of a fault, what was sent already is left out; for a fault it is sent again',
    async (t) => {
      const { bulk, receiver, replies, run, request } = await setUp(t, workload, all)
      const answers = async (count: number) => {
        await eventually('it is answered', () => replies.frames.length === count)
        const frame = replies.frames[count - 1] as FrameOf<'pageReply'>
        return [...pagesOf(frame.runs), ...pagesOf(frame.zeroRuns)]
          .map((page) => page - first)
          .sort((a, b) => a - b)
      }
      request(first + 100, 2, { ahead: true })
      t.same(await answers(1), [100, 101])
      request(first + 98, 8, { ahead: true })
      t.same(await answers(2), [98, 99, 102, 103, 104, 105])
      request(first + 98, 8, { ahead: true })
      t.same(await answers(3), [], 'no page at all is an answer, too')
      request(first + 100, 2)
      t.same(await answers(4), [100, 101], 'somebody waits for these')

      await connectBulk(t, bulk[0], receiver)
      run()
      await eventually('the rest is pushed', () => receiver.pages.size === nrPages - 8)
      t.notOk(receiver.pages.has(101), 'and what was sent as a reply is not')
      request(first + 500, 1, { ahead: true })
      t.same(await answers(5), [], 'it was pushed')
    },
  )

  await t.test('nothing but lazy pages may be asked for', async (t) => {
    const lazy = PageSet.of([first + 10, 20], [first + 40, 5])
    const cases: [what: string, send: (setup: Setup) => void, code: number, reason: RegExp][] = [
      ['a page before', ({ request }) => request(first + 9), 4108, /is not a lazy page/],
      ['a page behind', ({ request }) => request(first + 45), 4108, /is not a lazy page/],
      ['a range that leaves the set', ({ request }) => request(first + 28, 3), 4108, /is not a lazy page/],
      ['a range with a hole', ({ request }) => request(first + 29, 12), 4108, /is not a lazy page/],
      [
        'another address space',
        ({ request }) => request(first + 10, 1, { asId: 2 }),
        4107,
        /address space 2/,
      ],
      ['another round', ({ request }) => request(first + 10, 1, { round: 3 }), 4107, /round 3/],
    ]
    for (const [what, send, code, reason] of cases) {
      const setup = await setUp(t, workload, lazy)
      send(setup)
      setup.request(first + 10)
      await eventually(`the lane is closed after ${what}`, () => setup.replies.losses.length === 1)
      t.same(setup.replies.frames, [], `${what} is not answered, nor is anything behind it`)
      t.match(setup.replies.losses[0].message, reason)
      t.match(setup.replies.losses[0].message, code === 4108 ? /OUTSIDE_PROCESS/ : /OUT_OF_ORDER/)

      await connectBulk(t, setup.bulk[0], setup.receiver)
      setup.run()
      await eventually('everything is still pushed', () => setup.receiver.pages.size === 25)
    }
  })

  await t.test('what was discarded is not pushed; only what is lazy can be', async (t) => {
    const { faults, bulk, receiver, run } = await setUp(t, workload, all)
    const { source } = await connectBulk(t, bulk[0], receiver)
    const discard = (from: number, nr: number): Frame => {
      return { type: 'discard', asId, round, runs: Float64Array.of(from, nr) }
    }
    faults.onFrame(source, discard(first + 100, 500) as FrameOf<'discard'>)
    t.throws(() => faults.onFrame(source, discard(first - 1, 1) as FrameOf<'discard'>), {
      code: 'PROTOCOL',
      closeCode: 4108,
    })
    const stale = { ...discard(first, 1), round: 1 } as FrameOf<'discard'>
    t.throws(() => faults.onFrame(source, stale), { code: 'PROTOCOL', closeCode: 4107 })
    run()
    const rest = indices.filter((i) => i < 100 || i >= 600)
    await eventually('the rest is pushed', () => receiver.pages.size === rest.length)
    t.same(receiver.wrong(rest), [])
  })

  await t.test('often written pages first, then around the latest fault, then the rest', async (t) => {
    const history = new WriteHistory()
    history.record(PageSet.of([first + 2000, 100]), 2)
    history.record(PageSet.of([first + 2000, 100]), 3)
    const { bulk, receiver, replies, run, request } = await setUp(t, workload, all, { history })
    request(first + 1000)
    await eventually('it is answered', () => replies.frames.length === 1)
    await connectBulk(t, bulk[0], receiver)
    run()
    await eventually('all arrive', () => receiver.pages.size === nrPages - 1)
    const order = receiver.batches.map(({ runs, zeroRuns }) =>
      [...pagesOf(runs), ...pagesOf(zeroRuns)].map((p) => p - first),
    )
    t.ok(
      order[0].every((page) => page >= 2000 && page < 2100),
      'hot pages come first',
    )
    // Batches are small until the lane has been measured, and each is sorted.
    const early = new Set(order.flat().slice(0, 100 + 128 + maxBatchPages))
    t.ok(
      indices.slice(2000, 2100).every((i) => early.has(i)),
      'all of them',
    )
    const block = Math.floor((first + 1000) / 64) * 64 - first
    t.ok(
      indices.slice(block, block + 128).every((i) => i === 1000 || early.has(i)),
      'so are the block of the fault and the next one',
    )
    t.notOk(early.has(1500))
    const rest = order.filter((pages) => pages.every((page) => page < 900 || page > 2100))
    t.ok(rest.length > 2)
    t.ok(
      rest.slice(1).every((pages, i) => Math.min(...pages) > Math.min(...rest[i])),
      'the rest ascends',
    )
  })

  await t.test('what a broken lane had in flight is pushed again over the next one', async (t) => {
    const { push, bulk, receiver, run } = await setUp(t, workload, all)
    const lossy = new Receiver(first)
    lossy.acknowledges = false
    const { source, destination } = await connectBulk(t, bulk[0], lossy)
    run()
    await eventually('the window is full', () => lossy.batches.length > 0 && !bulk[0].hasRoomToPush)
    destination.terminate()
    await source.closed()
    push.requeue(bulk[0].lost())
    await connectBulk(t, bulk[0], receiver)
    await eventually('all arrive', () => receiver.pages.size === nrPages)
    t.same(receiver.wrong(indices), [])

    // Everything was sent by now: the loop sleeps, and wakes for what is given back.
    const twice = [{ runs: Float64Array.of(first + 50, 2), zeroRuns: Float64Array.of(first + 54, 1) }]
    push.requeue(twice)
    await eventually('they come again', () => receiver.pages.get(54)?.length === 2)
    t.same(receiver.pages.get(50), [contentOf(50), contentOf(50)])
    t.equal(receiver.pages.get(53)?.length, 1)
  })

  await t.test('a limit of the bandwidth holds back what is pushed, and no reply', async (t) => {
    let bytes = 0
    let allow: () => void = () => {}
    const allowed = new Promise<boolean>((resolve) => {
      allow = () => resolve(true)
    })
    const pacing: Pace = {
      batchPages: 8,
      turn: () => allowed,
      sent: (more) => {
        bytes += more
      },
    }
    const { bulk, receiver, replies, run, request } = await setUp(t, workload, all, { pacing })
    await connectBulk(t, bulk[0], receiver)
    run()
    for (let i = 0; i < 50; i++) request(first + 10 * i)
    await eventually('they are answered', () => replies.frames.length === 50)
    t.equal(receiver.pages.size, 0)
    t.equal(bytes, 0, 'replies do not count')
    allow()
    await eventually('the rest is pushed', () => receiver.pages.size === nrPages - 50)
    t.equal(bytes, bulk[0].bytesSent)
    t.ok(receiver.batches.every(({ runs, zeroRuns }) => pagesInRuns(runs) + pagesInRuns(zeroRuns) <= 8))
  })

  await t.test('until the workload runs at the destination, only what is asked for is sent', async (t) => {
    let running: () => void = () => {}
    const until = new Promise<void>((resolve) => {
      running = resolve
    })
    const { bulk, receiver, replies, run, request } = await setUp(t, workload, all, {
      hold: { until, atMostMs: 60_000 },
    })
    await connectBulk(t, bulk[0], receiver)
    run()
    for (let i = 0; i < 50; i++) request(first + 10 * i)
    await eventually('they are answered', () => replies.frames.length === 50)
    t.equal(receiver.pages.size, 0)
    running()
    await eventually('the rest is pushed', () => receiver.pages.size === nrPages - 50)
  })

  await t.test('not for ever: over a slow link Running takes long', async (t) => {
    const { bulk, receiver, run } = await setUp(t, workload, all, {
      hold: { until: new Promise(() => {}), atMostMs: 20 },
    })
    await connectBulk(t, bulk[0], receiver)
    run()
    await eventually('all is pushed', () => receiver.pages.size === nrPages)
  })

  await t.test('a push that is told to stop meanwhile never begins', async (t) => {
    const push = new Push({
      ...{ ...workload, asId, round, sent: new SentBitmap(all.runTable()), faults: new FaultFeed() },
      ...{ lanes: [new BulkLane()], log },
      hold: { until: new Promise(() => {}), atMostMs: 60_000 },
    })
    const controller = new AbortController()
    const running = push.run(controller.signal)
    controller.abort()
    await running
    t.equal(push.pushedPages, 0)
  })

  await t.test('one that waits for its turn when everything has come ends with it', async (t) => {
    const stop = new AbortController()
    const pacing: Pace = {
      batchPages: maxBatchPages,
      sent: () => {},
      turn: (signal) => new Promise((resolve) => signal.addEventListener('abort', () => resolve(true))),
    }
    const only = Float64Array.of(workload.first, 1)
    const sent = new SentBitmap(only)
    const push = new Push({
      ...{ ...workload, asId, round, sent, faults: new FaultFeed(), lanes: [new BulkLane()], log, pacing },
    })
    const running = push.run(stop.signal)
    // It was asked for: nothing is left to push.
    sent.claim(only)
    stop.abort()
    await running
    t.equal(push.pushedPages, 0)
  })

  await t.test('a peer that asks and does not take the replies is cut off', async (t) => {
    const { fault, replies, request } = await setUp(t, workload, all)
    fault.pause()
    for (let i = 0; i < 2500; i++) request(first, 8)
    // The close frame stands behind the replies that the kernel had taken.
    await new Promise((resolve) => setTimeout(resolve, 300))
    fault.resume()
    await eventually('the lane is closed', () => replies.losses.length === 1, { timeoutMs: 20_000 })
    t.match(replies.losses[0].message, /WINDOW_EXCEEDED/)
    t.ok(
      replies.frames.length >= 1024 && replies.frames.length < 2500,
      `after ${replies.frames.length} replies`,
    )
    t.ok(replies.payloads.every((payload) => payload.length === 7 * pageBytes))
  })
})
