import { pageBytes } from '@pageferry/base'
import type { Lab } from '@pageferry/lab'
import type { Limits } from './limits.js'
import { type Move, moveProbes, warmUp } from './moves.js'
import { DEFAULT_PROBE } from './probe.js'
import { type Benchmark, emptyBenchmark } from './result.js'
import { describeTransport, type TransportOptions, transportOf } from './transport.js'

export interface PrecopyOptions extends TransportOptions {
  sizeMiB: number
  dirtyRate: number
  /** See ProbeOptions. */
  redundancy: number
  runs: number
}

/** `bench precopy`: how fast memory travels in rounds, compared with a plain socket in the same run. */
export async function benchPrecopy(
  lab: Lab,
  options: PrecopyOptions,
  limits: Limits | undefined,
  signal?: AbortSignal,
): Promise<Benchmark> {
  const { sizeMiB, bulkLanes, dirtyRate, redundancy, runs, link } = options
  await warmUp(lab, sizeMiB)
  const probe = { ...DEFAULT_PROBE, pattern: 'sequential' as const, sizeMiB, dirtyRate, redundancy }
  const moves = await moveProbes(
    lab,
    runs,
    probe,
    { mode: 'precopy', ...transportOf(options) },
    { signal, link },
  )
  const lanes = bulkLanes ?? 1
  const written = dirtyRate > 0 ? `, ${dirtyRate} pages/s written` : ''
  const redundant = redundancy > 0 ? `, ${Math.round(100 * redundancy)} % redundant` : ''
  const title = `precopy: ${sizeMiB} MiB${redundant}, ${lanes} bulk ${lanes === 1 ? 'lane' : 'lanes'}${written}${describeTransport(
    options,
  )
    .map((detail) => `, ${detail}`)
    .join('')}`
  const benchmark = emptyBenchmark('precopy', title, { ...options })
  const tcp = limits && [{ name: 'plain TCP socket', value: limits.tcpGigabytesPerS }]
  // Later rounds are too short to measure throughput.
  benchmark.metrics.push(
    { name: 'first round', unit: 'GB/s', better: 'higher', values: moves.map(firstRound), limits: tcp },
    ...(['rounds', 'bytes', 'total'] as const).map((name) => ({
      name: { rounds: 'rounds', bytes: 'bytes on the wire', total: 'total' }[name],
      unit: { rounds: '', bytes: 'MiB', total: 'ms' }[name],
      better: 'lower' as const,
      values: moves.map(({ report }) => {
        if (name === 'rounds') return report.rounds.length
        return name === 'bytes' ? report.bytesOnWire / 2 ** 20 : report.totalMs
      }),
    })),
  )
  benchmark.metrics.push({
    name: 'pages that travelled compressed',
    unit: '',
    better: 'lower',
    values: moves.map(({ report }) => report.compressed.pages),
  })
  benchmark.raw.push(...moves.map(({ report }) => ({ report })))
  return benchmark
}

/** Gigabytes (10^9 bytes) of pages per second, however few bytes they were on the wire. */
function firstRound({ report }: Move): number {
  const round = report.rounds[0]
  if (round === undefined || round.durationMs === 0) return 0
  return ((round.pages - round.zeroPages) * pageBytes) / round.durationMs / 1e6
}
