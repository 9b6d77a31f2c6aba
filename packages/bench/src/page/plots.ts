import { merge, percentileCurve } from '../histogram.js'
import type { HistogramResult, PartsResult, SeriesResult } from '../result.js'
import { formatNumber } from '../table.js'
import { drawFrame, fixed, frame, linearAxis, logAxis, plotX, plotY, type Scale, type Tick } from './axis.js'
import { escapeHtml } from './escape.js'

/** Classes of the page's style sheet, one per colour. */
const nrColours = 6
const colour = (index: number): string => `c${index % nrColours}`

/** A legend with the meaning of the colours. */
function legend(names: readonly string[]): string {
  const items = names.map(
    (name, index) => `<li><span class="${colour(index)}"></span>${escapeHtml(name)}</li>`,
  )
  return `<ul class="legend">${items.join('')}</ul>`
}

function time(us: number): string {
  if (us >= 1e6) return `${us / 1e6} s`
  return us >= 1000 ? `${us / 1000} ms` : `${us} µs`
}

/** Latency by percentile, all runs together. Both axes are logarithmic, because the tail matters. */
export function percentilePlot(histograms: readonly HistogramResult[]): string {
  const curves = histograms.map(({ runs }) => percentileCurve(merge(runs)))
  const all = curves.flat()
  if (all.length === 0) return ''
  const nines = (percentile: number): number => -Math.log10(1 - Math.min(percentile, 99.999999) / 100)
  const most = Math.max(1, ...all.map(([percentile]) => nines(percentile)))
  const values = all.map(([, us]) => us)
  const y = logAxis(Math.max(0.01, Math.min(...values)), Math.max(...values), time)
  const ticks: Tick[] = [0, 50, 90, 99, 99.9, 99.99, 99.999, 99.9999]
    .filter((percentile) => nines(percentile) <= most)
    .map((percentile) => ({ at: nines(percentile) / most, label: `${percentile}` }))
  const lines = curves.map((curve, index) => {
    const points = curve.map(([percentile, us]): [number, number] => [nines(percentile) / most, y.scale(us)])
    return polyline(points, colour(index))
  })
  const title = 'latency by percentile'
  const svg = drawFrame(
    lines.join(''),
    { ticks, name: 'percentile' },
    { ticks: y.ticks, name: 'latency' },
    title,
  )
  return figure(title, svg, legend(histograms.map(({ name }) => name)))
}

/** One run of a series over time. */
export function seriesPlot(series: SeriesResult, run: number): string {
  const points = series.runs[run] ?? []
  if (points.length < 3) return ''
  const step = (points[1]?.[0] ?? 0) - (points[0]?.[0] ?? 0)
  const x = linearAxis((points.at(-1)?.[0] ?? 0) + (series.kind === 'bars' ? step : 0))
  const y = linearAxis(Math.max(...points.map(([, value]) => value)))
  const body =
    series.kind === 'bars'
      ? bars(points, step, x.scale, y.scale)
      : polyline(
          points.map(([ms, value]) => [x.scale(ms), y.scale(value)]),
          colour(0),
        )
  const title = `${series.name}, run ${run + 1} of ${series.runs.length}`
  return figure(
    title,
    drawFrame(body, { ticks: x.ticks, name: 'ms' }, { ticks: y.ticks, name: series.unit }, title),
    '',
  )
}

/** One bar per run, with its parts in order. */
export function partsPlot({ name, unit, runs }: PartsResult): string {
  const names = Object.keys(runs[0] ?? {})
  const sums = runs.map((run) => names.reduce((sum, part) => sum + (run[part] ?? 0), 0))
  if (names.length === 0 || Math.max(...sums) === 0) return ''
  const x = linearAxis(Math.max(...sums))
  const height = 0.7 / runs.length
  const ticks: Tick[] = runs.map((_, index) => ({
    at: 1 - (index + 0.5) / runs.length,
    label: `${index + 1}`,
  }))
  const body = runs.map((run, index) => {
    let from = 0
    const at = ticks[index]?.at ?? 0
    return names
      .map((part, which) => {
        const value = run[part] ?? 0
        const rect = rectangle(
          x.scale(from),
          x.scale(from + value),
          at - height / 2,
          at + height / 2,
          colour(which),
        )
        from += value
        return rect.replace(
          '/>',
          `><title>${escapeHtml(`${part} ${formatNumber(value)} ${unit}`)}</title></rect>`,
        )
      })
      .join('')
  })
  const title = `${name}: where it went`
  const svg = drawFrame(body.join(''), { ticks: x.ticks, name: unit }, { ticks, name: 'run' }, title)
  return figure(title, svg, legend(names))
}

function figure(title: string, svg: string, below: string): string {
  return `<figure><figcaption>${escapeHtml(title)}</figcaption>${svg}${below}</figure>`
}

function polyline(points: readonly (readonly [number, number])[], name: string): string {
  const coordinates = points.map(([x, y]) => `${fixed(plotX(x))},${fixed(plotY(y))}`)
  return `<polyline class="line ${name}" points="${coordinates.join(' ')}"/>`
}

function bars(points: readonly (readonly [number, number])[], step: number, x: Scale, y: Scale): string {
  return points
    .filter(([, value]) => value > 0)
    .map(([ms, value]) => rectangle(x(ms), x(ms + step), 0, y(value), colour(0)))
    .join('')
}

function rectangle(left: number, right: number, low: number, high: number, name: string): string {
  const width = Math.max(0.5, plotX(right) - plotX(left))
  const inside = Math.min(width, frame.width - frame.right - plotX(left))
  const height = plotY(low) - plotY(high)
  return `<rect class="area ${name}" x="${fixed(plotX(left))}" y="${fixed(plotY(high))}" width="${fixed(inside)}" height="${fixed(height)}"/>`
}
