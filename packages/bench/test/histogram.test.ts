import { seededRandom } from '@pageferry/base'
import t from 'tap'
import { encode, fromBuckets, fromSamples, merge, percentileCurve, percentileUs } from '../src/histogram.js'

t.test('merged histograms are the histogram of everything', async (t) => {
  const random = seededRandom(1)
  // From 100 ns to 100 ms, as latencies are: evenly in the logarithm.
  const samples = Array.from({ length: 30_000 }, () => 100 * 10 ** (6 * random()))
  const parts = [samples.slice(0, 100), samples.slice(100, 20_000), samples.slice(20_000), []]
  const merged = merge(parts.map((part) => encode(fromSamples(part))))
  t.equal(merged.totalCount, samples.length)
  const sorted = [...samples].sort((a, b) => a - b)
  for (const percentile of [1, 50, 90, 99, 99.9, 100]) {
    const exactUs = (sorted[Math.ceil((percentile / 100) * sorted.length) - 1] as number) / 1000
    const ratio = percentileUs(merged, percentile) / exactUs
    t.ok(ratio > 0.98 && ratio < 1.02, `p${percentile} is ${ratio} of the exact one`)
  }
  const other = merge([...parts].reverse().map((part) => encode(fromSamples(part))))
  t.same(percentileCurve(merged), percentileCurve(other), 'in whatever order')
})

t.test("the probe's buckets: all touches, and the longest of them", async (t) => {
  const histogram = fromBuckets(
    [
      [90, 1000],
      [150_000, 10],
      [8_032_000, 1],
    ],
    8_018_397,
  )
  t.equal(histogram.totalCount, 1011)
  t.ok(Math.abs(percentileUs(histogram, 50) - 0.09) < 0.001)
  t.ok(Math.abs(percentileUs(histogram, 100) / 8018.397 - 1) < 0.01)
  t.equal(fromBuckets([]).totalCount, 0)
  t.equal(percentileUs(fromBuckets([]), 50), 0)
})

t.test('a curve rises, and ends where samples end', async (t) => {
  const random = seededRandom(2)
  const curve = percentileCurve(fromSamples(Array.from({ length: 5000 }, () => 1e6 * random())))
  t.ok(curve.every(([p, us], index) => index === 0 || (p > curve[index - 1][0] && us >= curve[index - 1][1])))
  const [last] = curve.at(-1) as [number, number]
  t.ok(last > 99.9 && last < 100, `the last percentile is ${last}`)
  t.same(percentileCurve(fromSamples([])), [])
})
