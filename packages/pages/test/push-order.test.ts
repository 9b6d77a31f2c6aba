import { runTableOf } from '@pageferry/base'
import fc from 'fast-check'
import t from 'tap'
import { PageSet } from '../src/page-set.js'
import { maxBatchPages, PushOrder } from '../src/push-order.js'
import { WriteHistory } from '../src/write-history.js'
import { fcOptions } from './fc.js'

const out = new Float64Array(2 * maxBatchPages)
function next(order: PushOrder, maxPages?: number, table = out): Array<[number, number]> {
  const { nrRuns } = order.next(table, maxPages)
  return Array.from({ length: nrRuns }, (_, i) => [table[2 * i], table[2 * i + 1]])
}

t.test('hot pages, then neighbours of the latest fault, then the rest', async (t) => {
  const history = new WriteHistory()
  history.record(PageSet.of([500, 2], [900, 1]), 2)
  history.record(PageSet.of([900, 1]), 3)
  const order = new PushOrder(PageSet.of([0, 2000]), history)
  order.noteFault(300)
  order.noteFault(1500)
  order.remove(runTableOf([1500, 1], [300, 1]))
  t.same(next(order, 10), [
    [900, 1],
    [500, 2],
    [1472, 7],
  ])
  t.same(next(order, 125), [
    [1479, 21],
    [1501, 99],
    [256, 5],
  ])
  t.same(next(order, 122), [
    [261, 39],
    [301, 83],
  ])
  t.same(next(order), [[0, 256]])
})

t.test('a table with little room cuts the batch', async (t) => {
  const order = new PushOrder(PageSet.of([1, 1], [3, 1], [5, 1]))
  t.same(next(order, 100, new Float64Array(4)), [
    [1, 1],
    [3, 1],
  ])
  t.same(next(order), [[5, 1]])
  t.ok(order.isEmpty)
  t.same(next(order), [])
})

t.test('what did not arrive is pushed again', async (t) => {
  const order = new PushOrder(PageSet.of([0, 600]))
  next(order)
  next(order)
  order.requeue(runTableOf([100, 10]))
  t.same(next(order), [
    [100, 10],
    [512, 88],
  ])
})

t.test('every pending page is given out exactly once, removed ones never', async () => {
  const range = fc.tuple(fc.nat(300), fc.integer({ min: 1, max: 40 }))
  const step = fc.oneof(
    fc.record({ op: fc.constant('next' as const), pages: fc.integer({ min: 1, max: 50 }) }),
    fc.record({ op: fc.constant('fault' as const), page: fc.nat(400) }),
    fc.record({ op: fc.constant('remove' as const), range }),
    fc.record({ op: fc.constant('requeue' as const) }),
  )
  fc.assert(
    fc.property(
      fc.array(range),
      fc.array(fc.array(range)),
      fc.array(step, { maxLength: 60, size: 'max' }),
      (list, rounds, steps) => {
        const history = new WriteHistory()
        rounds.forEach((written, i) => {
          history.record(PageSet.of(...written), i + 2)
        })
        const left = PageSet.of(...list)
        const order = new PushOrder(left.clone(), history)
        const table = new Float64Array(24)
        let last: Array<[number, number]> = []
        const take = (pages: number) => {
          last = next(order, pages, table)
          const given = last.reduce((sum, [, nr]) => sum + nr, 0)
          if (given > pages || (given === 0 && !left.isEmpty)) throw new Error(`${given} pages for ${pages}`)
          for (const [first, nr] of last) {
            if (left.removeRange(first, nr) !== nr) throw new Error(`${first}+${nr} was not pending`)
          }
        }
        for (const step of steps) {
          if (step.op === 'next') take(step.pages)
          else if (step.op === 'fault') order.noteFault(step.page)
          else if (step.op === 'requeue') {
            order.requeue(runTableOf(...last))
            for (const [first, nr] of last) left.addRange(first, nr)
            last = []
          } else {
            order.remove(runTableOf(step.range))
            left.removeRange(...step.range)
          }
        }
        while (!order.isEmpty) take(50)
        if (!left.isEmpty) throw new Error('pages were never given out')
      },
    ),
    fcOptions(1000),
  )
})
