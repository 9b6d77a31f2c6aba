import { pagesInRuns, runTableOf } from '@pageferry/base'
import fc from 'fast-check'
import t from 'tap'
import { chunkPages, maxPages, PageSet } from '../src/page-set.js'
import { fcOptions } from './fc.js'

t.test('ranges across chunks, counts and runs', async (t) => {
  const set = new PageSet()
  t.equal(set.addRange(chunkPages - 3, 6), 6)
  t.equal(set.addRange(chunkPages, 10), 7, 'only what is new counts')
  t.same([...set.runs()], [[chunkPages - 3, 13]], 'one run across the border of chunks')
  t.equal(set.removeRange(chunkPages - 1, 2), 2)
  t.same(
    [...set.runs()],
    [
      [chunkPages - 3, 2],
      [chunkPages + 1, 9],
    ],
  )
  t.equal(set.count, 11)
  t.ok(set.has(chunkPages + 1))
  t.notOk(set.has(chunkPages))
  t.equal(set.firstFrom(chunkPages - 1), chunkPages + 1)
  t.equal(set.firstFrom(chunkPages + 10), -1)
  t.equal(set.runLength(chunkPages + 2, 100), 8)
  t.equal(set.runLength(chunkPages + 2, 3), 3)
  t.equal(set.runLength(chunkPages, 3), 0)
})

t.test('chunks that are no neighbours are no run', async (t) => {
  const set = PageSet.of([chunkPages - 1, 1], [2 * chunkPages, 2])
  t.same(
    [...set.runs()],
    [
      [chunkPages - 1, 1],
      [2 * chunkPages, 2],
    ],
  )
})

t.test('whole chunks, terabytes and the last page', async (t) => {
  const tebibyte = 2 ** 28
  const set = PageSet.of([0, tebibyte])
  t.equal(set.count, tebibyte)
  t.equal(set.removeRange(chunkPages * 5 + 7, 1), 1, 'the shared full chunk is copied before it changes')
  t.ok(set.has(chunkPages * 6 + 7), 'and no other chunk changed')
  t.same(
    [...set.runs()],
    [
      [0, chunkPages * 5 + 7],
      [chunkPages * 5 + 8, tebibyte - chunkPages * 5 - 8],
    ],
  )
  set.addRange(chunkPages * 5 + 7, 1)
  t.ok(set.equals(PageSet.of([0, tebibyte])))
  t.equal(set.addRange(maxPages - 1, 1), 1)
  t.equal(set.firstFrom(tebibyte), maxPages - 1)
  t.throws(() => set.addRange(maxPages, 1), RangeError)
  t.throws(() => set.addRange(-1, 2), RangeError)
  t.throws(() => set.addRange(0.5, 2), RangeError)
})

t.test('a batch is cut by runs, by pages and by the table', async (t) => {
  const set = PageSet.of([10, 5], [20, 5], [30, 5])
  const out = new Float64Array(8)
  t.same(set.fillRunTable(out, 0, 4, 1000), { nrRuns: 3, nrPages: 15, nextPage: -1 })
  t.same(set.fillRunTable(out, 0, 2, 1000), { nrRuns: 2, nrPages: 10, nextPage: 30 })
  t.same(set.fillRunTable(out, 0, 4, 7), { nrRuns: 2, nrPages: 7, nextPage: 22 })
  t.same(set.fillRunTable(out, 22, 4, 3), { nrRuns: 1, nrPages: 3, nextPage: 30 })
  t.same([...out.subarray(0, 2)], [22, 3])
  t.same(set.fillRunTable(out.subarray(0, 2), 0, 4, 1000), { nrRuns: 1, nrPages: 5, nextPage: 20 })
  t.same(set.fillRunTable(out, 35, 4, 1000), { nrRuns: 0, nrPages: 0, nextPage: -1 })
})

t.test('batches of a long run neither lose nor repeat a page', async (t) => {
  const set = PageSet.of([5, 3 * chunkPages])
  const out = new Float64Array(64)
  const seen = new PageSet()
  for (let page = 0; page >= 0; ) {
    const { nrRuns, nrPages, nextPage } = set.fillRunTable(out, page, 32, 20000)
    t.equal(seen.addRuns(out, nrRuns), nrPages)
    page = nextPage
  }
  t.ok(seen.equals(set))
})

t.test('removeOutside wants ascending runs', async (t) => {
  const set = PageSet.of([0, 100])
  t.equal(set.removeOutside(runTableOf([10, 5], [90, 100])), 85)
  t.same(
    [...set.runs()],
    [
      [10, 5],
      [90, 10],
    ],
  )
  t.throws(() => set.removeOutside(runTableOf([10, 5], [0, 3])), RangeError)
})

/** Around chunk borders, where mistakes live; and long enough to fill and empty whole chunks. */
const range = fc.tuple(
  fc.oneof(
    fc.nat(200),
    fc.nat(200).map((n) => chunkPages - 100 + n),
    fc.nat(3 * chunkPages),
  ),
  fc.oneof(fc.nat(70), fc.nat(2 * chunkPages)),
)
const ranges = fc.array(range, { maxLength: 6 })

t.test('agrees with one byte per page', async () => {
  const size = 6 * chunkPages
  const command = fc.tuple(
    fc.constantFrom('add', 'remove', 'union', 'subtract', 'intersect', 'outside', 'clone'),
    ranges,
  )
  fc.assert(
    fc.property(fc.array(command, { maxLength: 12 }), range, (commands, [first, nr]) => {
      let set = new PageSet()
      const model = new Uint8Array(size)
      for (const [op, list] of commands) {
        const other = PageSet.of(...list)
        const theirs = new Uint8Array(size)
        for (const [a, n] of list) theirs.fill(1, a, a + n)
        const before = set.count
        if (op === 'add') for (const [a, n] of list) set.addRange(a, n)
        else if (op === 'remove') for (const [a, n] of list) set.removeRange(a, n)
        else if (op === 'union') set.union(other)
        else if (op === 'subtract') set.subtract(other)
        else if (op === 'intersect') set.intersect(other)
        else if (op === 'outside') {
          const removed = set.removeOutside(other.runTable())
          if (removed !== before - set.count) throw new Error('removeOutside miscounts')
        } else {
          const copy = set.clone()
          set.union(other)
          set = copy
          continue
        }
        const adds = op === 'add' || op === 'union'
        const removes = op === 'remove' || op === 'subtract'
        for (let p = 0; p < size; p++) {
          if (adds) model[p] |= theirs[p]
          else if (removes) model[p] &= 1 - theirs[p]
          else model[p] &= theirs[p]
        }
      }
      const expected: Array<[number, number]> = []
      for (let p = 0; p < size; p++) {
        const last = expected.at(-1)
        if (model[p] === 0) continue
        if (last !== undefined && last[0] + last[1] === p) last[1]++
        else expected.push([p, 1])
      }
      const runs: Array<[number, number]> = []
      set.forEachRun((a, n) => runs.push([a, n]))
      if (JSON.stringify(runs) !== JSON.stringify(expected)) throw new Error('runs differ')
      if (set.count !== pagesInRuns(set.runTable())) throw new Error('count differs')
      if (set.isEmpty !== (expected.length === 0)) throw new Error('isEmpty differs')
      const inside = model.subarray(first, first + nr).reduce((sum, bit) => sum + bit, 0)
      if (set.countRange(first, nr) !== inside) throw new Error('countRange differs')
      let walked = 0
      set.forEachRunIn(first, nr, (a, n) => {
        if (a < first || a + n > first + nr) throw new Error('forEachRunIn leaves its range')
        walked += n
      })
      if (walked !== inside) throw new Error('forEachRunIn differs')
      const next = model.indexOf(1, first)
      if (set.firstFrom(first) !== next) throw new Error('firstFrom differs')
      if (!PageSet.fromRuns(set.runTable()).equals(set)) throw new Error('does not equal its own runs')
    }),
    fcOptions(300),
  )
})
