import t from 'tap'
import { chunkPages, PageSet } from '../src/page-set.js'
import { WriteHistory } from '../src/write-history.js'

t.test('counts rounds, remembers the last, and saturates', async (t) => {
  const history = new WriteHistory()
  const border = PageSet.of([chunkPages - 2, 4])
  history.record(border, 2)
  history.record(PageSet.of([chunkPages, 1]), 3)
  t.equal(history.count(chunkPages), 2)
  t.equal(history.lastRound(chunkPages), 3)
  t.equal(history.count(chunkPages - 1), 1)
  t.equal(history.lastRound(chunkPages - 1), 2)
  t.equal(history.count(5), 0)
  for (let round = 4; round < 400; round++) history.record(border, round)
  t.equal(history.count(chunkPages), 255)
  t.equal(history.lastRound(chunkPages), 255)
})

t.test('orders by rounds written, then by recency; only candidates that were written', async (t) => {
  const history = new WriteHistory()
  history.record(PageSet.of([10, 6]), 2)
  history.record(PageSet.of([12, 2], [100, 2]), 3)
  history.record(PageSet.of([13, 1]), 4)
  const groups = history.byHeat(PageSet.of([0, 101]))
  t.same(
    groups.map((group) => [...group.runs()]),
    [
      [[13, 1]],
      [[12, 1]],
      [[100, 1]],
      [
        [10, 2],
        [14, 2],
      ],
    ],
  )
  t.same(
    [...history.hottest(PageSet.of([0, 200]), 3).runs()],
    [
      [12, 2],
      [100, 1],
    ],
  )
  t.ok(history.hottest(PageSet.of([0, 200]), 0).isEmpty)
  t.equal(history.hottest(PageSet.of([0, 200]), 1000).count, 8)
  history.forget(12, 2)
  t.equal(history.count(13), 0)
  t.same([...history.hottest(PageSet.of([0, 200]), 1).runs()], [[100, 1]])
})
