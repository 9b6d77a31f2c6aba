import type { Lab } from '@pageferry/lab'
import type { Limits } from './limits.js'
import { describeBandwidth, type LinkOptions } from './link/relay.js'
import { type Move, moveProbes, warmUp } from './moves.js'
import { DEFAULT_PROBE } from './probe.js'
import { type Benchmark, emptyBenchmark } from './result.js'

export interface PrecopyOptions {
  sizeMiB: number
  bulkLanes?: number
  maxBandwidthMbit?: number
  dirtyRate: number
  runs: number
  link?: LinkOptions
}

/** `bench precopy`: how fast memory travels in rounds, compared with a plain socket in the same run. */
export async function benchPrecopy(
  lab: Lab,
  options: PrecopyOptions,
  limits: Limits | undefined,
  signal?: AbortSignal,
): Promise<Benchmark> {
  const { sizeMiB, bulkLanes, maxBandwidthMbit, dirtyRate, runs, link } = options
  await warmUp(lab, sizeMiB)
  const probe = { ...DEFAULT_PROBE, pattern: 'sequential' as const, sizeMiB, dirtyRate }
  const moves = await moveProbes(
    lab,
    runs,
    probe,
    { mode: 'precopy', bulkLanes, maxBandwidthMbit },
    { signal, link },
  )
  const lanes = bulkLanes ?? 1
  const written = dirtyRate > 0 ? `, ${dirtyRate} pages/s written` : ''
  const title = `precopy: ${sizeMiB} MiB, ${lanes} bulk ${lanes === 1 ? 'lane' : 'lanes'}${written}${describeBandwidth(
    options,
  )
    .map((detail) => `, ${detail}`)
    .join('')}`
  const benchmark = emptyBenchmark('precopy', title, { ...options })
  const tcp = limits && [{ name: 'plain TCP socket', value: limits.tcpGigabytesPerS }]
  // Later rounds are too short to say anything about throughput.
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
  benchmark.raw.push(...moves.map(({ report }) => ({ report })))
  return benchmark
}

/** Gigabytes (10^9 bytes) a second. */
function firstRound({ report }: Move): number {
  const round = report.rounds[0]
  return round === undefined || round.durationMs === 0 ? 0 : round.bytes / round.durationMs / 1e6
}
