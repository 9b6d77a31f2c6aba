import t from 'tap'
import { encode, fromSamples } from '../src/histogram.js'
import { escapeHtml } from '../src/page/escape.js'
import { renderPage } from '../src/page/page.js'
import { emptyBenchmark, newResultFile, type ResultFile } from '../src/result.js'

const evil = `<img src=x onerror="alert('1')">&`

function exampleFile(): ResultFile {
  const file = newResultFile()
  const benchmark = emptyBenchmark('faults', `faults ${evil}`, {})
  benchmark.metrics.push({
    ...{ name: `stall ${evil}`, unit: evil, better: 'lower', values: [3, 1, 2] },
    limits: [{ name: evil, value: 4 }],
  })
  benchmark.histograms.push({
    name: `touches ${evil}`,
    runs: [encode(fromSamples([90, 100, 1e6])), encode(fromSamples([80]))],
  })
  const points: [number, number][] = [0, 1, 2, 3].map((ms) => [ms, ms * ms])
  benchmark.series.push({ name: evil, unit: evil, kind: 'bars', runs: [points, points, points] })
  benchmark.series.push({ name: 'line', unit: 'pages', kind: 'line', runs: [points, points, points] })
  benchmark.parts.push({
    name: 'blackout',
    unit: 'ms',
    runs: [
      { freeze: 3, [evil]: 0 },
      { freeze: 1, [evil]: 4 },
    ],
  })
  file.machine.cpu = evil
  file.benchmarks.push(benchmark, emptyBenchmark('limits', 'nothing measured', {}))
  return file
}

t.test('a page needs nothing but itself', async (t) => {
  const page = renderPage(exampleFile())
  for (const forbidden of [
    /https?:/,
    /\bsrc=/,
    /url\(/,
    /@import/,
    /<script/i,
    /<link/i,
    /<iframe/i,
    /href="[^#]/,
  ]) {
    t.notMatch(page.replaceAll(escapeHtml(evil), ''), forbidden)
  }
  t.match(page, /<meta name="viewport" content="width=device-width/)
  t.match(page, /prefers-color-scheme:dark/)
})

t.test('whatever comes from outside is text', async (t) => {
  const page = renderPage(exampleFile())
  t.notOk(page.includes('<img'), 'no element')
  t.ok(page.split(escapeHtml(evil)).length > 8, 'and it is shown')
  t.equal(escapeHtml(evil), '&lt;img src=x onerror=&quot;alert(&#39;1&#39;)&quot;&gt;&amp;')
})

t.test('every plot is drawn, with numbers', async (t) => {
  const page = renderPage(exampleFile())
  t.equal(page.match(/<svg /g)?.length, 4)
  t.equal(page.match(/<svg /g)?.length, page.match(/<\/svg>/g)?.length)
  t.notMatch(page, /NaN|undefined|Infinity|\[object/)
  const opened = [...page.matchAll(/<(section|figure|table|tr|ul|li|text|rect)(\s[^>]*[^/])?>/g)].length
  const closed = [...page.matchAll(/<\/(section|figure|table|tr|ul|li|text|rect)>/g)].length
  t.equal(opened, closed, 'what is opened is closed')
})

t.test('what was not measured is not drawn', async (t) => {
  const file = newResultFile()
  const benchmark = emptyBenchmark('faults', 'empty', {})
  benchmark.histograms.push({ name: 'touches', runs: [] })
  benchmark.series.push({ name: 'x', unit: 'y', kind: 'line', runs: [] })
  benchmark.parts.push({ name: 'blackout', unit: 'ms', runs: [] })
  file.benchmarks.push(benchmark)
  const page = renderPage(file)
  t.notMatch(page, /<svg|NaN|undefined/)
})
