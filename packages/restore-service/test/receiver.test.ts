import { closeSync, readFileSync } from 'node:fs'
import type { Restorer } from '@pageferry/checkpoint'
import { fds } from '@pageferry/kernel'
import type { DestinationEvent, RoundFrame } from '@pageferry/migration'
import { PE_LAZY, PE_PARENT, PE_PRESENT } from '@pageferry/pages'
import { eventually } from '@pageferry/testing/eventually'
import { lanePair, Recorder } from '@pageferry/testing/sockets'
import { bulkWindowBatches, type FrameOf } from '@pageferry/wire'
import type { Lane } from '@pageferry/wire/sockets'
import t, { type Test } from 'tap'
import type { Destination, Member } from '../src/destination.js'
import { BulkInstaller } from '../src/lanes/bulk-installer.js'
import type { RoundTarget } from '../src/lanes/bulk-messages.js'
import { ImageReceiver } from '../src/rounds/images.js'
import { RoundReceiver } from '../src/rounds/receiver.js'
import { takeRoundFrame } from '../src/rounds/route.js'
import { area, createRestorer, Images, pages, read, relative, table } from './fixtures/skeleton.js'

const asId = 5
const none = new Float64Array(0)
const outOfOrder = { code: 'PROTOCOL', closeCode: 4107 }

interface Setup {
  restorer: Restorer
  images: Images
  rounds: RoundReceiver
  /** Our end of each bulk lane, what the source got back on it, and who installs what it brings. */
  lanes: { lane: Lane; acks: Recorder; installer: BulkInstaller }[]
  /** What RoundApplied says. */
  applied: number[]
  /** Of the final round: what is known by now. */
  finalSteps: string[]
}

async function setUp(test: Test, nrLanes = 2): Promise<Setup> {
  const restorer = await createRestorer(test)
  const images = new Images()
  images.setMap([area(0, 2000, 'anon')])
  const lanes: Setup['lanes'] = []
  for (let index = 0; index < nrLanes; index++) {
    const { source, destination } = await lanePair(test, 'bulk', index)
    const acks = new Recorder()
    source.open(acks)
    destination.open(new Recorder())
    const installer = new BulkInstaller((message) => {
      if (message.type === 'installed') rounds.onInstalled(index, message.round, message.pages)
    })
    test.teardown(() => installer.close())
    lanes.push({ lane: destination, acks, installer })
  }
  const applied: number[] = []
  const finalSteps: string[] = []
  const bulk = {
    openRound: (target: RoundTarget) => {
      for (const { installer } of lanes) installer.open(target)
    },
    close: () => {
      for (const { installer } of lanes) installer.close()
    },
  }
  const rounds = new RoundReceiver({ restorer, asId }, images.images, bulk, {
    onRoundApplied: (frame) => applied.push(frame.pages),
    onFinalMap: () => finalSteps.push('map'),
    onFinalPagemap: () => finalSteps.push('pagemap'),
    onRoundFailed: (error) => {
      throw error
    },
  })
  return { restorer, images, lanes, rounds, applied, finalSteps }
}

function begin({ rounds }: Setup, round: number, more: Partial<FrameOf<'roundBegin'>> = {}): void {
  rounds.begin({ type: 'roundBegin', asId, round, final: false, ...more })
}

function end(
  setup: Setup,
  round: number,
  batchesPerLane: number[],
  more: Partial<FrameOf<'roundEnd'>> = {},
): void {
  const frame: FrameOf<'roundEnd'> = { type: 'roundEnd', asId, round, final: false, batchesPerLane, ...more }
  setup.rounds.end(frame)
}

/** The final round's pagemap. */
function pagemap({ images, rounds }: Setup, entries: Parameters<Images['setPagemap']>[0]): void {
  rounds.imageCame(images.setPagemap(entries))
}

let sequence = 0

/** A batch with pages that are each full of one byte. */
function batch(
  { lanes }: Setup,
  index: number,
  round: number,
  at: number,
  bytes: number[],
  more: Partial<FrameOf<'pageBatch'>> = {},
): void {
  const runs = bytes.length === 0 ? none : table([at, bytes.length])
  const frame: FrameOf<'pageBatch'> = {
    type: 'pageBatch',
    asId,
    round,
    sequence: ++sequence,
    runs,
    zeroRuns: none,
    zstdBytes: 0,
    ...more,
  }
  const { lane, installer } = lanes[index]
  installer.onBatch(lane, frame, pages(...bytes))
}

t.test('a round is complete when every lane has brought what RoundEnd says', async (t) => {
  const setup = await setUp(t)
  const { restorer, lanes, applied, rounds } = setup
  begin(setup, 1)
  t.equal(rounds.round, 1)
  batch(setup, 0, 1, 0, [1, 2])
  end(setup, 1, [2, 1])
  batch(setup, 0, 1, 10, [3], { zeroRuns: table([20, 2]) })
  t.same(applied, [], 'the other lane is behind')
  batch(setup, 1, 1, 30, [4])
  t.same(applied, [4], 'pages with content')
  t.same(relative(restorer.presentPages()), [
    [0, 2],
    [10, 1],
    [20, 2],
    [30, 1],
  ])
  t.same(read(restorer, 0, 2), [1, 2])
  t.same(read(restorer, 30, 1), [4])
  await eventually(
    'all are acknowledged',
    () => lanes[0].acks.frames.length + lanes[1].acks.frames.length === 3,
  )
  t.match(lanes[1].acks.frames, [{ type: 'batchAck', sequence, bytes: 4096 }])

  begin(setup, 2)
  batch(setup, 1, 2, 0, [11])
  end(setup, 2, [0, 1])
  t.same(applied, [4, 1], 'also when the end comes last')
  t.same(read(restorer, 0, 2), [11, 2])

  begin(setup, 3)
  end(setup, 3, [])
  t.same(applied, [4, 1, 0], 'or nothing at all')
})

t.test('a batch that overtakes its RoundBegin waits for it', async (t) => {
  const setup = await setUp(t)
  const { restorer, lanes, applied } = setup
  batch(setup, 1, 1, 5, [7])
  batch(setup, 0, 1, 6, [8])
  t.equal(restorer.map.map.areas.length, 0, 'there is nothing to install it in yet')
  begin(setup, 1)
  t.same(read(restorer, 5, 2), [7, 8])
  end(setup, 1, [1, 1])
  t.same(applied, [2])
  await eventually('both are acknowledged', () => lanes.every(({ acks }) => acks.frames.length === 1))

  batch(setup, 0, 2, 5, [17])
  t.same(read(restorer, 5, 1), [7], 'nothing of the next round before it begins')
  await new Promise((resolve) => setTimeout(resolve, 20))
  t.equal(lanes[0].acks.frames.length, 1, 'nor is it acknowledged')
  begin(setup, 2)
  t.same(read(restorer, 5, 1), [17])
})

t.test('only so much may wait, on each lane', async (t) => {
  const setup = await setUp(t)
  for (const lane of [0, 1]) {
    for (let i = 0; i < bulkWindowBatches; i++) batch(setup, lane, 1, 0, [], { zeroRuns: table([i, 1]) })
  }
  const tooMany = (): void => batch(setup, 0, 1, 0, [], { zeroRuns: table([300, 1]) })
  t.throws(tooMany, { code: 'PROTOCOL', closeCode: 4109 }, 'batches')
  begin(setup, 1)
  end(setup, 1, [bulkWindowBatches, bulkWindowBatches])
  t.same(setup.applied, [0], 'what was refused was not kept')

  const full = Array.from({ length: 256 }, () => 1)
  for (const lane of [0, 1]) for (let i = 0; i < 4; i++) batch(setup, lane, 2, 256 * i, full)
  t.throws(() => batch(setup, 1, 2, 1100, [1]), { code: 'PROTOCOL', closeCode: 4109 }, 'bytes')
})

t.test('frames out of order, or of another process', async (t) => {
  const setup = await setUp(t)
  const { restorer, lanes, applied, rounds } = setup
  const foreign = { code: 'PROTOCOL', closeCode: 4108, message: `address space ${asId + 1} is unknown` }
  const other = { asId: asId + 1 }

  t.throws(() => begin(setup, 2), outOfOrder, 'the first round is 1')
  t.throws(() => end(setup, 1, [0]), outOfOrder, 'no round has begun')
  t.equal(rounds.round, 0)

  begin(setup, 1)
  t.throws(() => begin(setup, 2), outOfOrder, 'before the end of the one before')
  t.throws(() => begin(setup, 1), outOfOrder)
  t.throws(() => batch(setup, 0, 3, 0, [1]), outOfOrder, 'a batch of the round after the next')
  t.throws(() => batch(setup, 0, 1, 0, [1], other), foreign)
  t.throws(
    () => batch(setup, 0, 1, 5000, [1]),
    { code: 'PROTOCOL', closeCode: 4108 },
    'a page outside the map',
  )
  t.throws(() => end(setup, 2, [0]), outOfOrder)
  t.throws(() => end(setup, 1, [0], { final: true }), outOfOrder, 'it began as another kind of round')
  t.throws(() => pagemap(setup, []), outOfOrder, 'of a round that is not the final one')
  t.doesNotThrow(() => rounds.imageCame('mm-100.img'), 'other images have no order')
  t.same(relative(restorer.presentPages()), [], 'nothing of all that was applied')
  t.same(applied, [])

  batch(setup, 0, 1, 0, [1])
  end(setup, 1, [2])
  t.throws(() => end(setup, 1, [2]), outOfOrder, 'twice')
  batch(setup, 0, 1, 1, [2])
  t.same(applied, [2])
  t.throws(() => batch(setup, 0, 1, 2, [3]), outOfOrder, 'a batch of a round that is complete')
  t.throws(() => end(setup, 1, [2]), outOfOrder)
  t.same(relative(restorer.presentPages()), [[0, 2]])
  await eventually('the good ones are acknowledged', () => lanes[0].acks.frames.length === 2)
})

t.test('each frame goes to the rounds of its address space', async (t) => {
  const setup = await setUp(t)
  const { rounds, restorer } = setup
  const failures: DestinationEvent[] = []
  const member: Member = { asId, process: {} as Member['process'], rounds, verifier: null, family: null }
  const destination = {
    members: new Map([[asId, member]]),
    root: { skeleton: { restorer } } as Destination['root'],
    imageReceiver: new ImageReceiver(() => {}),
    status: { beQuiet: () => t.fail('not the final round') } as unknown as Destination['status'],
    post: (event: DestinationEvent) => failures.push(event),
  }
  const take = (frame: RoundFrame, payload = new Uint8Array()) => takeRoundFrame(destination, frame, payload)
  take({ type: 'roundBegin', asId: asId + 1, round: 1, final: false })
  take({ type: 'roundEnd', asId: asId + 1, round: 1, final: false, batchesPerLane: [0] })
  const unknown = { code: 'PROTOCOL', message: `address space ${asId + 1} is unknown` }
  const failure = { type: 'stepFailed', step: 'prepare', error: unknown }
  t.match(failures, [failure, failure], 'each ends the migration, with its reason')
  t.equal(rounds.round, 0)
  take({ type: 'roundBegin', asId, round: 1, final: false })
  batch(setup, 0, 1, 0, [1])
  take({ type: 'roundEnd', asId, round: 1, final: false, batchesPerLane: [1] })
  t.equal(rounds.round, 1)
  t.same(relative(restorer.presentPages()), [[0, 1]])
  t.equal(failures.length, 2)

  const facts = { uid: 0, gid: 0, size: 4096, atimeNs: 1n, mtimeNs: 2n, tmpfileFlags: 0 }
  take({ type: 'ghost', ghostId: 1, path: '/tmp/gone', mode: 0o100600, ...facts })
  take({ type: 'ghostData', ghostId: 1, offset: 100, bytes: 3, hole: false }, Buffer.from('ABC'))
  t.equal(failures.length, 2, 'a file without a name')
  const fd = restorer.ghosts.open(1, fds.O_RDONLY)
  t.equal(readFileSync(`/proc/self/fd/${fd}`, 'latin1').slice(99, 104), '\0ABC\0')
  closeSync(fd)
  take({ type: 'ghostData', ghostId: 1, offset: 4094, bytes: 3, hole: true })
  take({ type: 'ghostGone', ghostId: 1 })
  take({ type: 'ghostGone', ghostId: 1 })
  t.match(failures.slice(2), [
    { step: 'prepare', error: { code: 'PROTOCOL', message: /behind the end/ } },
    { step: 'prepare', error: { code: 'PROTOCOL', message: /is unknown/ } },
  ])
})

t.test('more batches than RoundEnd says', async (t) => {
  const setup = await setUp(t)
  begin(setup, 1)
  batch(setup, 0, 1, 0, [1])
  batch(setup, 0, 1, 1, [1])
  t.throws(() => end(setup, 1, [1, 1]), outOfOrder, 'it would never be complete')

  const late = await setUp(t)
  begin(late, 1)
  end(late, 1, [1, 1])
  batch(late, 0, 1, 0, [1])
  t.throws(() => batch(late, 0, 1, 1, [1]), outOfOrder)

  const unknown = await setUp(t)
  begin(unknown, 1)
  end(unknown, 1, [1])
  t.throws(() => batch(unknown, 1, 1, 1, [1]), outOfOrder, 'on a lane that has none')
})

t.test('each round brings its own memory map', async (t) => {
  const setup = await setUp(t, 1)
  const { restorer, images } = setup
  begin(setup, 1)
  batch(setup, 0, 1, 100, [1, 2])
  end(setup, 1, [1])
  images.setMap([area(0, 101, 'anon'), area(3000, 10, 'anon')])
  begin(setup, 2)
  t.same(relative(restorer.presentPages()), [[100, 1]], 'what the round unmaps is gone')
  t.throws(() => batch(setup, 0, 2, 101, [3]), { code: 'PROTOCOL', closeCode: 4108 })
  batch(setup, 0, 2, 3000, [3])
  t.same(read(restorer, 3000, 1), [3])
})

t.test('the final round: parents stay, what must not be there goes, the rest arrives', async (t) => {
  const setup = await setUp(t, 1)
  const { restorer, rounds, applied, finalSteps } = setup
  let installed = false
  void rounds.finalSets(new AbortController().signal).then(() => {
    installed = true
  })
  begin(setup, 1)
  batch(setup, 0, 1, 0, [1, 2, 3, 4, 5])
  end(setup, 1, [1])
  begin(setup, 2, { final: true })
  t.throws(
    () => end(setup, 2, [2], { final: true }),
    outOfOrder,
    'before it is known what becomes of the pages',
  )
  batch(setup, 0, 2, 3, [14])
  t.same(read(restorer, 3, 1), [4], 'nothing is installed before that')
  pagemap(setup, [
    [0, 2, PE_PARENT],
    [2, 1, PE_LAZY],
    [3, 1, PE_PRESENT],
    [50, 2, PE_PRESENT],
    [60, 9, PE_LAZY],
  ])
  t.same(finalSteps, ['map', 'pagemap'])
  t.throws(() => pagemap(setup, []), outOfOrder, 'twice')
  t.same(relative(restorer.presentPages()), [
    [0, 2],
    [3, 1],
  ])
  t.same(relative(restorer.map.registered), [[0, 2000]], 'everything is still registered')
  end(setup, 2, [2], { final: true })
  await new Promise((resolve) => setImmediate(resolve))
  t.notOk(installed)
  batch(setup, 0, 2, 50, [15], { zeroRuns: table([51, 1]) })
  const sets = await rounds.finalSets(new AbortController().signal)
  t.same(relative(sets.parent), [[0, 2]])
  t.same(relative(sets.present), [
    [3, 1],
    [50, 2],
  ])
  t.same(relative(sets.lazy), [
    [2, 1],
    [60, 9],
  ])
  t.same(read(restorer, 0, 2), [1, 2])
  t.same(read(restorer, 3, 1), [14])
  t.same(read(restorer, 50, 2), [15, 0])
  t.same(applied, [5, 2])
  t.throws(() => begin(setup, 3), outOfOrder, 'nothing comes behind it')
})

t.test(
  'what is there is looked up between the rounds, and again where the map has changed since',
  async (t) => {
    for (const changed of [false, true]) {
      const setup = await setUp(t, 1)
      const { restorer, images } = setup
      const look = restorer.presentPages.bind(restorer)
      let looks = 0
      restorer.presentPages = () => {
        looks++
        return look()
      }
      begin(setup, 1)
      batch(setup, 0, 1, 0, [1, 2])
      end(setup, 1, [1])
      begin(setup, 2)
      await new Promise((resolve) => setImmediate(resolve))
      t.equal(looks, 0, 'not when the next round has begun')
      batch(setup, 0, 2, 2, [3])
      end(setup, 2, [1])
      await new Promise((resolve) => setImmediate(resolve))
      t.equal(looks, 1)
      if (changed) images.setMap([area(0, 1, 'anon'), area(2, 2000, 'anon')])
      begin(setup, 3, { final: true })
      pagemap(setup, changed ? [[0, 1, PE_PARENT]] : [[0, 2, PE_PARENT]])
      t.equal(looks, changed ? 2 : 1)
      t.same(relative(look()), changed ? [[0, 1]] : [[0, 2]], 'page 2 was discarded')
    }
  },
)

t.test('a parent that is not there fails the migration', async (t) => {
  const setup = await setUp(t, 1)
  begin(setup, 1)
  batch(setup, 0, 1, 0, [1])
  end(setup, 1, [1])
  begin(setup, 2, { final: true })
  t.throws(() => pagemap(setup, [[0, 3, PE_PARENT]]), {
    code: 'INTERNAL',
    message: /^2 pages .* page 0x40001$/,
  })
})
