import fc from 'fast-check'
import t from 'tap'
import { PageSet } from '../src/page-set.js'
import { maxPrefetchWindow, Prefetcher } from '../src/prefetch.js'
import { fcOptions } from './fc.js'

const nrPages = 20_000

/**
 * A process whose pages are all missing, and a link that brings what is asked for after `delay`, one page at a time
 * and in the order of asking. A touch takes no time, a page that is waited for as long as it needs.
 */
class Model {
  readonly prefetcher = new Prefetcher()
  readonly missing = PageSet.of([0, nrPages])
  faults = 0
  now = 0
  room = Number.POSITIVE_INFINITY
  readonly #delay: number
  readonly #pageTime: number
  #linkFreeAt = 0
  /** Pages on their way, with the time at which they arrive. */
  readonly #requested = new Map<number, number>()

  constructor(delay = 0, pageTime = 0) {
    this.#delay = delay
    this.#pageTime = pageTime
  }

  touch(page: number, tid = 1): number[] {
    this.#arrive()
    if (!this.missing.has(page)) return []
    this.faults++
    this.#request(page)
    const states = {
      isMissing: (each: number) => each >= 0 && this.missing.has(each),
      isRequested: (each: number) => this.#requested.has(each),
      room: this.room,
    }
    const pages = this.prefetcher.onFault(tid, page, states)
    for (const each of pages) {
      if (states.isRequested(each) || !states.isMissing(each)) throw new Error(`${each} was asked for twice`)
      this.#request(each)
    }
    this.now = Math.max(this.now, this.#requested.get(page) as number)
    this.#arrive()
    return pages
  }

  /** Brought by another thread. */
  push(first: number, nr: number): void {
    this.missing.removeRange(first, nr)
  }

  #request(page: number): void {
    if (this.#requested.has(page)) return
    this.#linkFreeAt = Math.max(this.now + this.#delay, this.#linkFreeAt) + this.#pageTime
    this.#requested.set(page, this.#linkFreeAt)
  }

  #arrive(): void {
    for (const [page, at] of this.#requested) {
      if (at > this.now) return
      this.#requested.delete(page)
      this.missing.removeRange(page, 1)
    }
  }
}

/** The same random numbers each time. */
function random(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
}

for (const stride of [1, -1, 2, 16, -7]) {
  t.test(`a stream with stride ${stride} soon faults once in ${maxPrefetchWindow + 1} pages`, async (t) => {
    const model = new Model()
    const start = stride > 0 ? 0 : nrPages - 1
    const touches = 1000
    for (let i = 0; i < touches; i++) model.touch(start + i * stride)
    t.ok(model.faults <= 9 + touches / (maxPrefetchWindow + 1), `${model.faults} faults`)
    const { prefetched, useful } = model.prefetcher
    t.ok(prefetched <= touches + maxPrefetchWindow, 'nothing beside the stream')
    t.ok(useful >= touches - model.faults - maxPrefetchWindow, `${useful} of ${prefetched} useful`)
    t.ok(useful <= prefetched)
  })
}

t.test('three faults make a trend, and the window doubles with each fault that follows it', async (t) => {
  const model = new Model()
  t.same(model.touch(100), [])
  t.same(model.touch(101), [])
  t.same(model.touch(102), [103])
  t.same(model.touch(104), [105, 106])
  t.same(model.touch(107), [108, 109, 110, 111])
  t.same(model.touch(5000), [5001, 5002], 'a miss halves it')
  t.same(model.touch(9000), [9001])
  t.same(model.touch(3000), [], 'and ends at nothing')
  t.equal(model.prefetcher.useful, 3)
})

t.test('random touches cost nothing that they did not ask for', async (t) => {
  const next = random(7)
  const model = new Model()
  for (let i = 0; i < 10_000; i++) model.touch(Math.floor(next() * nrPages))
  t.ok(model.prefetcher.prefetched < model.faults / 100, `${model.prefetcher.prefetched} pages`)
})

t.test('after a stream random touches stop the prefetching, and a new stream starts it again', async (t) => {
  const model = new Model()
  const next = random(3)
  const phase = (touches: number, page: (i: number) => number) => {
    const before = { faults: model.faults, prefetched: model.prefetcher.prefetched }
    for (let i = 0; i < touches; i++) model.touch(page(i))
    return {
      faults: model.faults - before.faults,
      prefetched: model.prefetcher.prefetched - before.prefetched,
    }
  }
  phase(1000, (i) => i)
  const wasted = phase(1000, () => 8000 + Math.floor(next() * 12_000))
  t.ok(wasted.prefetched <= 2 * maxPrefetchWindow, `${wasted.prefetched} pages for nothing`)
  const strided = phase(300, (i) => 1000 + i * 16)
  t.ok(strided.faults < 60, `${strided.faults} faults of 300 touches`)
})

t.test('threads do not disturb each other', async (t) => {
  const model = new Model()
  const next = random(5)
  const touches = 600
  for (let i = 0; i < touches; i++) {
    model.touch(i, 1)
    model.touch(19_000 - 3 * i, 2)
    model.touch(1000 + Math.floor(next() * 15_000), 3)
  }
  // Together with one fault of the random thread in each round the streams hardly fault.
  t.ok(model.faults < touches * 1.2, `${model.faults} faults`)
  t.ok(model.prefetcher.prefetched < 2 * touches + 200)
})

t.test('what others bring is passed over without losing the trend', async (t) => {
  const model = new Model()
  for (const page of [10, 11, 12]) model.touch(page)
  model.push(14, 112)
  t.same(model.touch(126), [127, 128], 'the first page behind the pushed ones')
  // From the beginning: each fault is the first page behind a push.
  const pushed = new Model()
  let asked = 0
  for (let page = 0; page < 4; page++) {
    asked += pushed.touch(page * 50).length
    pushed.push(page * 50, 50)
  }
  t.ok(asked > 0)
})

t.test('over a slow link a stream runs at the speed of the link, not of its round trips', async (t) => {
  const touches = 2000
  const model = new Model(20, 1)
  for (let page = 0; page < touches; page++) model.touch(page)
  t.ok(model.now < 1.2 * touches, `${model.now} for ${touches} pages`)
})

t.test('no more is asked for than there is room for', async (t) => {
  const model = new Model()
  for (let page = 0; page < 10; page++) model.touch(page)
  model.room = 2
  for (let page = 10; page < 100; page++) t.ok(model.touch(page).length <= 2)
  model.room = -1
  for (let page = 100; page < 110; page++) t.same(model.touch(page), [])
})

t.test('the number of threads that are remembered is bounded', async (t) => {
  const prefetcher = new Prefetcher()
  const states = { isMissing: () => true, isRequested: () => false, room: 100 }
  for (const page of [1, 2, 3]) prefetcher.onFault(1, page, states)
  for (let tid = 2; tid < 5000; tid++) {
    prefetcher.onFault(tid, tid, states)
    if (tid % 200 === 0) t.not(prefetcher.onFault(1, tid, states), undefined)
  }
  t.ok(prefetcher.nrThreads <= 256)
})

t.test('a fault that is raised again says nothing', async (t) => {
  const prefetcher = new Prefetcher()
  const states = { isMissing: () => true, isRequested: () => false, room: 100 }
  for (const page of [1, 2, 3]) prefetcher.onFault(1, page, states)
  for (let i = 0; i < 10; i++) t.same(prefetcher.onFault(1, 3, states), [])
  t.same(prefetcher.onFault(1, 4, states), [5, 6, 7, 8], 'it waits for a page on its way: twice as far')
})

t.test('whatever is touched: only missing pages, none twice, no more than the window allows', async () => {
  const touch = fc.record({
    tid: fc.integer({ min: 1, max: 3 }),
    stride: fc.integer({ min: -20, max: 20 }),
    start: fc.nat(nrPages - 1),
    touches: fc.integer({ min: 1, max: 60 }),
  })
  fc.assert(
    fc.property(fc.array(touch, { maxLength: 30 }), fc.nat(30), fc.nat(2), (streams, ...link) => {
      const model = new Model(...link)
      for (const { tid, stride, start, touches } of streams) {
        for (let i = 0; i < touches; i++) {
          const page = start + i * stride
          if (page < 0 || page >= nrPages) break
          const asked = model.touch(page, tid).length
          if (asked > 2 * maxPrefetchWindow) throw new Error(`${asked} pages at once`)
        }
      }
      const { useful, prefetched } = model.prefetcher
      if (useful > prefetched) throw new Error(`${useful} of ${prefetched} useful`)
    }),
    fcOptions(300),
  )
})
