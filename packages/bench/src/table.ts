import Table from 'cli-table3'
import { type Benchmark, type Machine, type Metric, median, type ResultFile } from './result.js'

/** No lines between rows, no colours: readable on a small terminal and in a log. */
const plain = {
  style: { head: [], border: [], compact: true },
}

/** Three digits, or whole numbers if those have more. */
export function formatNumber(value: number): string {
  const size = Math.abs(value)
  if (size >= 1000) return Math.round(value).toLocaleString('en-US')
  if (size === 0) return '0'
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3)
}

/** The ratio to each limit, in the direction in which 1 is the best. */
export function formatRatios({ values, limits = [] }: Metric): string[] {
  return limits
    .filter(({ value }) => value !== 0)
    .map(({ name, value }) => `${formatNumber(median(values) / value)} × ${name}`)
}

export function describeMachineLine(machine: Machine): string {
  const { cpu, cores, memoryMiB, kernel, node, load1 } = machine
  return `${cpu}, ${cores} cores, ${formatNumber(memoryMiB)} MiB, Linux ${kernel}, Node ${node}, load ${load1} before`
}

/** Median, minimum and maximum of the runs, and the ratio to the limits of the same run. */
export function formatBenchmark({ title, metrics }: Benchmark): string {
  const table = new Table({ head: ['', 'median', 'min', 'max', '', 'ratio to limit'], ...plain })
  for (const metric of metrics) {
    const { name, values, unit } = metric
    const numbers = [median(values), Math.min(...values), Math.max(...values)].map(formatNumber)
    table.push([
      name,
      ...numbers.map((content) => ({ content, hAlign: 'right' as const })),
      unit,
      formatRatios(metric).join('\n'),
    ])
  }
  return `${title}\n${table.toString()}\n`
}

/** `bench compare A B`: benchmarks in both files. A ratio above 1 is worse if less is better. */
export function formatComparison(a: ResultFile, b: ResultFile): string {
  const table = new Table({ head: ['', '', 'A', 'B', 'unit', 'B / A', ''], ...plain })
  for (const before of a.benchmarks) {
    const after = b.benchmarks.find(({ title }) => title === before.title)
    for (const metric of before.metrics) {
      const other = after?.metrics.find(({ name }) => name === metric.name)
      if (other === undefined) continue
      const [from, to] = [median(metric.values), median(other.values)]
      const ratio = from === 0 ? '' : formatNumber(to / from)
      table.push([
        before.title,
        metric.name,
        formatNumber(from),
        formatNumber(to),
        metric.unit,
        ratio,
        verdict(metric, other),
      ])
    }
  }
  const machines = [a, b].map(
    ({ takenAt, machine }, index) => `${'AB'[index]}: ${takenAt}, ${describeMachineLine(machine)}`,
  )
  if (table.length === 0) return `${machines.join('\n')}\nThe two have no benchmark in common.\n`
  return `${machines.join('\n')}\n${table.toString()}\n`
}

/** Counts as a difference only if no run of the other file reached it. */
function verdict(a: Metric, b: Metric): string {
  const lower = Math.max(...b.values) < Math.min(...a.values)
  const higher = Math.min(...b.values) > Math.max(...a.values)
  if (!lower && !higher) return ''
  return lower === (a.better === 'lower') ? 'better' : 'worse'
}
