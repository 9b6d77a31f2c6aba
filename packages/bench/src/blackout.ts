import type { Lab } from '@pageferry/lab'
import type { MigrationSettings } from '@pageferry/service/client'
import { blackoutParts, type Move, moveProbes, warmUp } from './moves.js'
import { DEFAULT_PROBE } from './probe.js'
import { type Benchmark, emptyBenchmark, median, metricNamed } from './result.js'
import { describeTransport, type TransportOptions, transportOf } from './transport.js'

export interface BlackoutOptions extends TransportOptions {
  sizesMiB: number[]
  dirtyRate: number
  mode: MigrationSettings['mode']
  runs: number
}

/** `bench blackout`: one benchmark per size. The lazy phase is not measured, but its content is checked. */
export async function benchBlackout(
  lab: Lab,
  options: BlackoutOptions,
  signal?: AbortSignal,
): Promise<Benchmark[]> {
  const { sizesMiB, dirtyRate, mode, runs, link } = options
  await warmUp(lab, Math.max(...sizesMiB))
  const benchmarks: Benchmark[] = []
  for (const sizeMiB of sizesMiB) {
    const probe = { ...DEFAULT_PROBE, pattern: 'sequential' as const, sizeMiB, dirtyRate }
    const moves = await moveProbes(lab, runs, probe, { mode, ...transportOf(options) }, { signal, link })
    benchmarks.push(blackoutBenchmark(sizeMiB, options, moves))
  }
  addGrowth(benchmarks)
  return benchmarks
}

function blackoutBenchmark(sizeMiB: number, options: BlackoutOptions, moves: Move[]): Benchmark {
  const { dirtyRate, mode, bulkLanes, link } = options
  const lanes = bulkLanes === undefined ? '' : `, ${bulkLanes} bulk lanes`
  const title = `blackout: ${sizeMiB} MiB, ${mode}, ${dirtyRate} pages/s written${lanes}${describeTransport(
    options,
  )
    .map((detail) => `, ${detail}`)
    .join('')}`
  const benchmark = emptyBenchmark('blackout', title, {
    sizeMiB,
    dirtyRate,
    mode,
    ...transportOf(options),
    link,
  })
  const add = (name: string, unit: string, of: (move: Move) => number): void => {
    benchmark.metrics.push({ name, unit, better: 'lower', values: moves.map(of) })
  }
  add('blackout', 'ms', ({ report }) => report.blackoutMs)
  for (const part of ['freeze', 'capture', 'transfer', 'restore', 'resume']) {
    add(`  ${part}`, 'ms', ({ report }) => blackoutParts(report)[part] as number)
  }
  add('pause, as the workload sees it', 'ms', ({ probe }) => probe.before.moveGapNs / 1e6)
  add('longest pause before', 'ms', ({ probe }) => probe.before.longestGapNs / 1e6)
  add('rounds', '', ({ report }) => report.rounds.length)
  add('pages sent in the freeze', '', ({ report }) => report.pages.present)
  add('total', 'ms', ({ report }) => report.totalMs)
  benchmark.parts.push({
    name: 'blackout',
    unit: 'ms',
    runs: moves.map(({ report }) => blackoutParts(report)),
  })
  benchmark.raw.push(...moves.map(({ report, probe: { before } }) => ({ report, before })))
  return benchmark
}

/** How much longer the downtime is than with the smallest memory. */
function addGrowth(benchmarks: Benchmark[]): void {
  const [smallest, ...others] = benchmarks
  if (smallest === undefined) return
  const value = median(metricNamed(smallest, 'blackout').values)
  for (const other of others) {
    metricNamed(other, 'blackout').limits = [{ name: `${smallest.options.sizeMiB} MiB`, value }]
  }
}
