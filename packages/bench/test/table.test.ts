import t from 'tap'
import { emptyBenchmark, type Metric, median, newResultFile, type ResultFile } from '../src/result.js'
import { formatBenchmark, formatComparison, formatNumber, formatRatios } from '../src/table.js'

function fileWith(...metrics: Metric[]): ResultFile {
  const file = newResultFile()
  const benchmark = emptyBenchmark('faults', 'faults: 64 MiB', {})
  benchmark.metrics.push(...metrics)
  file.benchmarks.push(benchmark)
  return file
}

const stall = (...values: number[]): Metric => ({ name: 'stall', unit: 'ms', better: 'lower', values })
const speed = (...values: number[]): Metric => ({ name: 'speed', unit: 'GB/s', better: 'higher', values })

t.test('numbers have three digits', async (t) => {
  const numbers: [number, string][] = [
    [0, '0'],
    [0.0123, '0.012'],
    [1.234, '1.23'],
    [12.34, '12.3'],
    [123.4, '123'],
    [1234.5, '1,235'],
  ]
  for (const [value, text] of numbers) t.equal(formatNumber(value), text)
  t.equal(median([3, 1, 2]), 2)
  t.equal(median([4, 1, 2, 3]), 2.5)
  t.equal(median([]), 0)
})

t.test('a table shows median, extremes and the ratio to the limit', async (t) => {
  const metric = { ...stall(30, 10, 20), limits: [{ name: 'UFFDIO_COPY', value: 8 }] }
  t.same(formatRatios(metric), ['2.50 × UFFDIO_COPY'])
  const two = { ...metric, limits: [...metric.limits, { name: 'both', value: 40 }] }
  t.same(formatRatios(two), ['2.50 × UFFDIO_COPY', '0.500 × both'])
  t.same(formatRatios(stall(1)), [])
  const table = formatBenchmark(fileWith(metric).benchmarks[0] as never)
  t.match(table, /stall +│ +20\.0 +│ +10\.0 +│ +30\.0 +│ +ms +│ 2\.50 × UFFDIO_COPY/)
})

t.test('a comparison calls only that a difference which no run contradicts', async (t) => {
  const before = fileWith(stall(10, 11, 12), speed(1, 2))
  const row = (text: string, name: string): string =>
    text.split('\n').find((line) => line.includes(name)) ?? ''
  const better = formatComparison(before, fileWith(stall(5, 6), speed(3)))
  t.match(row(better, 'stall'), /11\.0 │ +5\.50 │ +ms +│ +0\.500 +│ better/)
  t.match(row(better, 'speed'), /2\.00 +│ better/)
  const same = formatComparison(before, fileWith(stall(5, 12), speed(1.5)))
  t.notMatch(same, /better|worse/)
  const worse = formatComparison(before, fileWith(stall(13), speed(0.5)))
  t.equal(worse.match(/worse/g)?.length, 2)
  t.match(formatComparison(before, newResultFile()), /no benchmark in common/)
})
