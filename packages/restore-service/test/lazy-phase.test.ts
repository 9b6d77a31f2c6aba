import { setTimeout as sleep } from 'node:timers/promises'
import { addressOf, createLogger, pageBytes, pageOf } from '@pageferry/base'
import { fds, uffd } from '@pageferry/kernel'
import { LazyMap, PageSet } from '@pageferry/pages'
import { Child } from '@pageferry/testing/child'
import { eventually } from '@pageferry/testing/eventually'
import { lanePair } from '@pageferry/testing/sockets'
import { type Frame, type FrameOf, WireError } from '@pageferry/wire'
import t, { type Test } from 'tap'
import { AddressSpace, type Holder } from '../src/lazy/address-space.js'
import { LazyPhase } from '../src/lazy/phase.js'
import { pages } from './fixtures/skeleton.js'

const nrPages = 64
const asId = 1
const round = 5
const none = new Float64Array(0)
const features = uffd.UFFD_FEATURE_EVENT_REMOVE | uffd.UFFD_FEATURE_EVENT_REMAP | uffd.UFFD_FEATURE_THREAD_ID

/** Of one worker without a successor. */
const keeper: Holder = { hold: () => {}, drop: () => {}, list: () => [], fetch: () => -1 }

/** A child's area in the lazy phase; the test is the source. */
async function setUp(test: Test, lazyOf: (first: number) => LazyMap, prefetch = false) {
  const child = new Child(nrPages)
  uffd.api(child.uffd, features)
  uffd.register(child.uffd, child.area, BigInt(nrPages * pageBytes), uffd.UFFDIO_REGISTER_MODE_MISSING)
  const first = pageOf(child.area)
  const waiting = { lazy: lazyOf(first), unsettled: [] }
  const space = AddressSpace.create(keeper, asId, fds.dup(child.uffd), waiting)
  const { source, destination } = await lanePair(test, 'fault')
  const phase = new LazyPhase({
    ...{ takenOver: false, prefetch },
    members: new Map([
      [asId, { spaces: [space], round, verifier: null, process: { pid: 0, exit: undefined } }],
    ]),
    log: createLogger('test', 'silent'),
    onProgress: () => {},
    onForkRead: () => {},
    lane: destination,
    // Nothing changes its memory map all the time.
    freezer: { holdStill: () => test.fail('it was held still'), thaw: () => {} },
  })
  const requests: FrameOf<'pageRequest'>[] = []
  source.open({
    onFrame: (frame: Frame) => {
      if (frame.type === 'pageRequest') requests.push(frame)
    },
    onLost: () => {},
  })
  destination.open({
    onFrame: (frame, payload) => {
      if (frame.type === 'pageReply') phase.onReply(frame, payload)
    },
    onLost: () => {},
  })
  phase.onUp()
  const controller = new AbortController()
  const running = phase.run(controller.signal).catch(() => {})
  test.teardown(async () => {
    controller.abort()
    await running
    phase.release()
    await child.end()
  })
  /** With pages that hold their number in the area; without: they were pushed. */
  const reply = ({ requestId, page, nrPages: nr }: FrameOf<'pageRequest'>, withPages = true): void => {
    const content = Array.from({ length: nr }, (_, i) => page - first + i + 1)
    const runs = withPages ? Float64Array.of(page, nr) : none
    const frame = { type: 'pageReply', asId, round, requestId, page, nrPages: nr, runs } as const
    source.send({ ...frame, zeroRuns: none, zstdBytes: 0 }, withPages ? pages(...content) : undefined)
  }
  /** What the child answers to an operation, while faults are served. */
  const answer = async (): Promise<bigint> => {
    for (;;) {
      try {
        return child.answerWithin(1)
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ETIMEDOUT') throw error
        await sleep(1)
      }
    }
  }
  return { child, first, space, phase, requests, reply, answer }
}

t.test('asked for ahead, left out because it was pushed, and faulted on before it came', async (t) => {
  const lazy = (first: number) => new LazyMap(PageSet.of([first, nrPages]))
  const { child, first, requests, reply, answer } = await setUp(t, lazy, true)
  const ahead: FrameOf<'pageRequest'>[] = []
  let seen = 0
  /** Answers requests that a thread waits for, and keeps the others. */
  const answerDemands = (): void => {
    for (; seen < requests.length; seen++) {
      if (requests[seen].ahead) ahead.push(requests[seen])
      else reply(requests[seen])
    }
  }
  const touch = async (index: number): Promise<void> => {
    child.start('r', addressOf(first + index))
    const value = answer()
    let done = false
    void value.then(() => {
      done = true
    })
    await eventually(`page ${index} comes`, () => {
      answerDemands()
      return done
    })
    t.equal(await value, BigInt(index + 1))
  }
  let index = 0
  for (; ahead.length === 0 && index < nrPages; index++) await touch(index)
  t.not(ahead.length, 0, 'a stream of faults is asked for ahead')

  const [request] = ahead
  const page = request.page
  child.start('r', addressOf(page))
  const value = answer()
  await sleep(50)
  t.notOk(
    requests.slice(seen).some((each) => !each.ahead && each.page === page),
    'its page is on its way: the fault asks for nothing',
  )
  reply(request, false)
  await eventually('then it is asked for', () =>
    requests.some((each) => !each.ahead && each.page === page && each.nrPages === 1),
  )
  answerDemands()
  t.equal(await value, BigInt(page - first + 1))
})

/** A page that can be asked about without touching anything: nothing is ever registered there. */
const nowhere = 0x7_ffff_fffe

/** Does something in between, as another thread of the workload might. */
class InterruptedMap extends LazyMap {
  afterLookup: ((page: number) => void) | null = null

  override lookup(page: number): number | 'zero' {
    const found = super.lookup(page)
    const { afterLookup } = this
    this.afterLookup = null
    afterLookup?.(page)
    return found
  }
}

t.test('memory that is still to come was moved to where a zero was about to be installed', async (t) => {
  let map: InterruptedMap | undefined
  const { child, first, space, requests, reply, answer } = await setUp(t, (start) => {
    map = new InterruptedMap(PageSet.of([start, nrPages / 2]))
    return map
  })
  const half = BigInt((nrPages / 2) * pageBytes)
  // The second half is a hole. Between the look at its page and the zero, another thread moves the first half there.
  const target = child.area + half
  ;(map as InterruptedMap).afterLookup = () => {
    process.kill(child.pid, 'SIGUSR1')
    // Its event waits to be read, and only this thread reads it.
    for (const end = Date.now() + 5000; ; ) {
      if (uffd.zeroRuns(space.uffd, Float64Array.of(nowhere, 1), 1, false).state === 'again') break
      if (Date.now() > end) throw new Error('nothing was moved')
    }
  }
  t.equal(child.call('t', child.area, half), 0n)
  child.start('r', target + BigInt(3 * pageBytes))
  const value = answer()
  await eventually('the page that is there now is asked for', () => requests.length > 0)
  t.match(requests, [{ page: first + 3, nrPages: 1 }])
  reply(requests[0])
  t.equal(await value, 4n, 'and not zero')
})

t.test('a reply of an unknown address space, or of another round, is refused', async (t) => {
  const { first, phase } = await setUp(t, (start) => new LazyMap(PageSet.of([start, nrPages])))
  const reply = { type: 'pageReply', asId, round, requestId: 1, page: first, nrPages: 1 } as const
  const frame = { ...reply, runs: none, zeroRuns: none, zstdBytes: 0 }
  const faultOf = (wrong: Partial<FrameOf<'pageReply'>>): string => {
    try {
      phase.onReply({ ...frame, ...wrong }, pages())
    } catch (error) {
      if (error instanceof WireError) return error.fault
    }
    return 'none'
  }
  t.equal(faultOf({ asId: asId + 1 }), 'OUTSIDE_PROCESS')
  t.equal(faultOf({ round: round + 1 }), 'OUT_OF_ORDER')
})
