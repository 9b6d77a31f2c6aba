import { type Benchmark, median, type ResultFile } from '../result.js'
import { describeMachineLine, formatNumber, formatRatios } from '../table.js'
import { escapeHtml } from './escape.js'
import { partsPlot, percentilePlot, seriesPlot } from './plots.js'
import { style } from './style.js'

/** One page with everything in it: no script, no font, no image, no address that a browser would fetch. */
export function renderPage(file: ResultFile): string {
  const sections = file.benchmarks.map(renderBenchmark)
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>pageferry bench, ${escapeHtml(file.takenAt)}</title>
<style>${style}</style>
</head>
<body>
<header>
<h1>pageferry bench</h1>
<p>${escapeHtml(file.takenAt)}<br>${escapeHtml(describeMachineLine(file.machine))}</p>
<p class="note">Medians of the runs, with minimum and maximum. Ratios are to what the same machine could do in the same
run without pageferry; absolute times do not carry over to another machine.</p>
${renderContents(file.benchmarks)}
</header>
<main>
${sections.join('\n')}
</main>
</body>
</html>
`
}

function renderContents(benchmarks: readonly Benchmark[]): string {
  const items = benchmarks.map(({ title }, index) => `<li><a href="#b${index}">${escapeHtml(title)}</a></li>`)
  return `<nav><ol>${items.join('')}</ol></nav>`
}

function renderBenchmark(benchmark: Benchmark, index: number): string {
  const { title, metrics, histograms, series, parts } = benchmark
  const rows = metrics.map((metric) => {
    const { name, unit, values } = metric
    const cells = [median(values), Math.min(...values), Math.max(...values)]
      .map((value) => `<td class="number">${escapeHtml(formatNumber(value))}</td>`)
      .join('')
    return `<tr><th scope="row">${escapeHtml(name)}</th>${cells}<td>${escapeHtml(unit)}</td><td>${formatRatios(metric).map(escapeHtml).join('<br>')}</td></tr>`
  })
  const run = representativeRun(benchmark)
  const plots = [
    histograms.length > 0 ? percentilePlot(histograms) : '',
    ...series.map((one) => seriesPlot(one, run)),
    ...parts.map(partsPlot),
  ]
  return `<section id="b${index}">
<h2>${escapeHtml(title)}</h2>
<div class="table"><table>
<thead><tr><td></td><th>median</th><th>min</th><th>max</th><td></td><th>ratio to limit</th></tr></thead>
<tbody>${rows.join('')}</tbody>
</table></div>
<div class="plots">${plots.join('')}</div>
</section>`
}

/** The run that is nearest to the median of the first metric: the others would be drawn over each other. */
function representativeRun({ metrics }: Benchmark): number {
  const values = metrics[0]?.values ?? []
  const middle = median(values)
  const distances = values.map((value) => Math.abs(value - middle))
  return Math.max(0, distances.indexOf(Math.min(...distances)))
}
