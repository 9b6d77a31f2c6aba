import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { seededRandom } from '@pageferry/base'
import { baseSeed } from '@pageferry/testing/seeds'
import fc from 'fast-check'
import t from 'tap'
import { FaultFeed } from '../src/lazy/fault-feed.js'
import { SentBitmap } from '../src/lazy/sent-bitmap.js'
import type { ClaimerData } from './fixtures/claimer.js'

/** Gap in front of a run and its length; a gap of 0 makes two runs touch. */
const tables = fc
  .array(fc.tuple(fc.nat(70), fc.integer({ min: 1, max: 150 })), { minLength: 1, maxLength: 8 })
  .map((pairs) => {
    let end = 2 ** 34
    return Float64Array.from(
      pairs.flatMap(([gap, nr]) => {
        const first = end + gap
        end = first + nr
        return [first, nr]
      }),
    )
  })

function pagesOf(runs: Float64Array): number[] {
  const pages: number[] = []
  for (let r = 0; r < runs.length; r += 2) {
    for (let i = 0; i < runs[r + 1]; i++) pages.push(runs[r] + i)
  }
  return pages
}

/** Ascending runs of pages; neighbours are one. */
function runsOf(pages: number[]): number[] {
  const runs: number[] = []
  for (const page of pages) {
    const last = runs.length - 2
    if (last >= 0 && runs[last] + runs[last + 1] === page) runs[last + 1]++
    else runs.push(page, 1)
  }
  return runs
}

t.test('as a set of pages does', async (t) => {
  const step = fc.record({
    type: fc.constantFrom('claim' as const, 'clear' as const),
    from: fc.nat(),
    nr: fc.integer({ min: 1, max: 120 }),
  })
  fc.assert(
    fc.property(tables, fc.array(step, { maxLength: 30 }), (lazy, steps) => {
      const all = pagesOf(lazy)
      const bitmap = new SentBitmap(lazy)
      // What one thread does the other one sees.
      const other = SentBitmap.of(bitmap.shared)
      const set = new Set<number>()
      for (const { type, from, nr } of steps) {
        const chosen = all.slice(from % all.length, (from % all.length) + nr)
        const runs = Float64Array.from(runsOf(chosen))
        if (type === 'claim') {
          const unset = chosen.filter((page) => !set.has(page))
          t.same([...bitmap.claim(runs)], runsOf(unset))
          for (const page of chosen) set.add(page)
        } else {
          bitmap.clear(runs)
          for (const page of chosen) set.delete(page)
        }
      }
      t.same(
        all.filter((page) => other.has(page)),
        all.filter((page) => set.has(page)),
      )
    }),
    { seed: baseSeed, numRuns: 300 },
  )
})

t.test('only pages of the table are known', async (t) => {
  fc.assert(
    fc.property(
      tables,
      fc.integer({ min: -3, max: 700 }),
      fc.integer({ min: 1, max: 200 }),
      (lazy, at, nr) => {
        const known = new Set(pagesOf(lazy))
        const first = lazy[0] + at
        const expected = Array.from({ length: nr }, (_, i) => first + i).every((page) => known.has(page))
        const bitmap = new SentBitmap(lazy)
        t.equal(bitmap.covers(first, nr), expected)
        if (!expected) t.throws(() => bitmap.claim(Float64Array.of(first, nr)), { code: 'INTERNAL' })
      },
    ),
    { seed: baseSeed, numRuns: 300 },
  )
  t.notOk(new SentBitmap(new Float64Array(0)).covers(1, 1), 'where nothing is lazy')
})

t.test(`two threads never have the same page (seed ${baseSeed})`, async (t) => {
  const random = seededRandom(baseSeed)
  let end = 1000
  // Three words of bits, over which they are at odds all the time.
  const lazy = Float64Array.from(
    Array.from({ length: 12 }, () => {
      const first = end + Math.floor(random() * 3)
      const nr = 1 + Math.floor(random() * 15)
      end = first + nr
      return [first, nr]
    }).flat(),
  )
  const nrPages = pagesOf(lazy).length
  const bitmap = new SentBitmap(lazy)
  const owners = new SharedArrayBuffer(4 * nrPages)
  const shared = new SharedArrayBuffer(8)
  const claimers = [1, 2].map((n) => {
    const data: ClaimerData = { pages: bitmap.shared, owners, shared, seed: baseSeed + n, turns: 400_000 }
    return new Worker(new URL('./fixtures/claimer.ts', import.meta.url), { workerData: data })
  })
  const kept = await Promise.all(
    claimers.map(async (claimer) => {
      const [runs] = (await once(claimer, 'message')) as [Float64Array[]]
      return runs.flatMap(pagesOf)
    }),
  )
  t.equal(new Int32Array(shared)[1], 0)
  const [mine, others] = kept
  t.ok(mine.length > 0 && others.length > 0)
  const all = [...mine, ...others]
  t.equal(new Set(all).size, all.length, 'nor in the end')
  t.same(
    pagesOf(lazy).filter((page) => bitmap.has(page)),
    all.sort((a, b) => a - b),
    'and a page is marked when a thread has it',
  )
})

t.test('the feed of the fault thread', async (t) => {
  const writer = new FaultFeed()
  const reader = new FaultFeed(writer.buffer)
  const taken = (): number[] => {
    const pages: number[] = []
    reader.takeFaults((page) => pages.push(page))
    return pages
  }
  t.same(taken(), [])
  writer.noteReply(2 ** 34 + 1, 4100, { pages: 0, bytes: 0 })
  writer.noteReply(7, 5000, { pages: 8, bytes: 900 })
  t.same(taken(), [2 ** 34 + 1, 7])
  t.same(taken(), [], 'each once')
  t.equal(reader.bytesSent, 9100)
  t.same(reader.compressed, { pages: 8, bytes: 900 })
  for (let page = 100; page < 300; page++) writer.noteReply(page, 1, { pages: 8, bytes: 900 })
  t.same(
    taken(),
    Array.from({ length: 64 }, (_, i) => 236 + i),
    'a reader that is behind hears of the latest',
  )
})
