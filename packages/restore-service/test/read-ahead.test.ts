import { LazyMap, PageSet } from '@pageferry/pages'
import t from 'tap'
import { maxPagesAhead, ReadAhead } from '../src/lazy/read-ahead.js'

const nobody = () => false

/** Faults on each page, which has come before the next fault; what was asked for meanwhile. */
function faultsOn(ahead: ReadAhead, lazy: LazyMap, pages: number[], tid = 1): void {
  for (const page of pages) {
    ahead.onFault(lazy, tid, page, nobody)
    lazy.installed(Float64Array.of(page, 1))
  }
}

function setUp(lazy: LazyMap) {
  const requests: [page: number, nrPages: number][] = []
  const ahead = new ReadAhead((page, nrPages) => requests.push([page, nrPages]))
  const answer = () => {
    for (const [page, nrPages] of requests.splice(0)) {
      ahead.answered(page, nrPages)
      lazy.installed(Float64Array.of(page, nrPages))
    }
  }
  return { ahead, requests, answer }
}

t.test('neighbours are asked for together, in both directions, and not twice', async (t) => {
  for (const direction of [1, -1]) {
    const lazy = new LazyMap(PageSet.of([0, 1000]))
    const { ahead, requests, answer } = setUp(lazy)
    const page = (i: number) => 500 + direction * i
    faultsOn(ahead, lazy, [page(0), page(1), page(2)])
    answer()
    faultsOn(ahead, lazy, [page(4)])
    t.same(requests, [[direction > 0 ? 505 : 494, 2]])
    t.ok(ahead.isComing(page(5)) && ahead.isComing(page(6)))
    // It faults before they have come.
    ahead.onFault(lazy, 1, page(5), (source) => source === page(5))
    t.same(requests.slice(1), [[direction > 0 ? 507 : 487, 7]], 'page 6 is on its way')
    answer()
    t.notOk(ahead.isComing(page(6)))
    t.equal(ahead.prefetchedPages, 10)
    t.equal(ahead.usefulPrefetchedPages, 2)
  }
})

t.test('a window is asked for in parts, and strides page by page', async (t) => {
  const lazy = new LazyMap(PageSet.of([0, 10_000]))
  const { ahead, requests, answer } = setUp(lazy)
  for (let page = 0; page < 200; page++) {
    if (lazy.isPending(page)) faultsOn(ahead, lazy, [page])
    if (page < 199) answer()
  }
  lazy.installed(Float64Array.of(0, 250))
  faultsOn(ahead, lazy, [250])
  t.same(requests.slice(-2), [
    [251, 16],
    [267, 16],
  ])
  answer()
  faultsOn(ahead, lazy, [1000, 1010, 1020, 1030, 1040], 2)
  t.ok(requests.length > 4)
  t.ok(requests.every(([page, nrPages]) => page % 10 === 0 && nrPages === 1))
})

t.test("what was moved is asked for by the source's addresses", async (t) => {
  const lazy = new LazyMap(PageSet.of([1000, 100]))
  lazy.remap(1000, 5000, 100)
  const { ahead, requests } = setUp(lazy)
  faultsOn(ahead, lazy, [5000, 5001, 5002])
  t.same(requests, [[1003, 1]])
  t.ok(ahead.isComing(1003))
})

t.test(
  'what is on its way unasked is bounded over all threads, until the answers come or the lane is lost',
  async (t) => {
    const lazy = new LazyMap(PageSet.of([0, 1_000_000]))
    const { ahead, requests, answer } = setUp(lazy)
    const onTheWay = () => requests.reduce((sum, [, nrPages]) => sum + nrPages, 0)
    const faults = () => {
      for (let tid = 1; tid <= 20; tid++) {
        for (let i = 0; i < 40; i++) ahead.onFault(lazy, tid, tid * 10_000 + i, nobody)
      }
    }
    faults()
    t.equal(onTheWay(), maxPagesAhead)
    answer()
    faults()
    t.equal(onTheWay(), maxPagesAhead)
    requests.length = 0
    ahead.forget()
    faults()
    t.equal(onTheWay(), maxPagesAhead)
  },
)
