import { PageferryError } from '@pageferry/base'
import type { Lab } from '@pageferry/lab'
import { type Move, moveProbes, roundTimes, warmUp } from './moves.js'
import { DEFAULT_PROBE } from './probe.js'
import { type Benchmark, emptyBenchmark, type Limit, median } from './result.js'
import { describeTransport, type TransportOptions, transportOf } from './transport.js'

export interface SlowdownOptions extends TransportOptions {
  sizeMiB: number
  dirtyRate: number
  runs: number
}

/** Long enough for a steady rate before the probe is disturbed. */
const settleMs = 2000
/** Left out at the start: the first writes to memory that was just filled, and the processor's clock. */
const startMs = 500

/**
 * `bench slowdown`: a probe computes without pause and writes `dirtyRate` pages a second. It counts its work in slots
 * of 10 ms. The rates before the migration, while the source prepares, and during the rounds are compared.
 */
export async function benchSlowdown(
  lab: Lab,
  options: SlowdownOptions,
  signal?: AbortSignal,
): Promise<Benchmark> {
  const { sizeMiB, dirtyRate, runs, link } = options
  await warmUp(lab, sizeMiB)
  const probe = { ...DEFAULT_PROBE, pattern: 'sequential' as const, sizeMiB, dirtyRate, work: true }
  const moves = await moveProbes(
    lab,
    runs,
    probe,
    { mode: 'hybrid', ...transportOf(options) },
    { signal, settle: settleMs, link },
  )
  const benchmark = emptyBenchmark(
    'slowdown',
    `slowdown: ${sizeMiB} MiB, ${dirtyRate} pages/s written${describeTransport(options)
      .map((detail) => `, ${detail}`)
      .join('')}`,
    {
      ...options,
    },
  )
  const rates = moves.map(workRates)
  const before = { name: 'before', value: median(rates.map((rate) => rate.before)) }
  const add = (name: string, of: (rate: WorkRates) => number, limits?: Limit[]): void => {
    benchmark.metrics.push({ name, unit: 'units/s', better: 'higher', values: rates.map(of), limits })
  }
  add('work before', (rate) => rate.before)
  add('work while the migration prepares', (rate) => rate.preparing, [before])
  add('work during rounds', (rate) => rate.rounds, [before])
  benchmark.metrics.push(
    {
      name: 'lost during rounds',
      unit: '%',
      better: 'lower',
      values: rates.map(({ before: was, rounds }) => 100 * (1 - rounds / was)),
    },
    {
      name: 'lost for each second of a processor',
      unit: '%',
      better: 'lower',
      values: rates.map(({ perCpuBefore, perCpuDuring }) => 100 * (1 - perCpuDuring / perCpuBefore)),
    },
    {
      name: 'pages written before',
      unit: 'pages/s',
      better: 'higher',
      values: rates.map((rate) => rate.pagesBefore),
    },
    {
      name: 'pages written during rounds',
      unit: 'pages/s',
      better: 'higher',
      values: rates.map((rate) => rate.pagesDuring),
    },
    { name: 'rounds took', unit: 'ms', better: 'lower', values: rates.map((rate) => rate.roundsMs) },
  )
  benchmark.series.push({ name: 'work', unit: 'units/s', kind: 'line', runs: moves.map(workSeries) })
  benchmark.raw.push(...moves.map(({ report, probe: { before } }) => ({ report, before })))
  return benchmark
}

interface WorkRates {
  before: number
  preparing: number
  rounds: number
  /** Work per processor time of the probe: shows the loss that is not due to other processes. */
  perCpuBefore: number
  perCpuDuring: number
  pagesBefore: number
  pagesDuring: number
  roundsMs: number
}

/** The hosts of a lab share CLOCK_REALTIME, so the probe's slots and our statuses use the same time. */
function workRates({ probe, statuses }: Move): WorkRates {
  const { work } = probe.before
  const created = statuses[0]?.atMs
  const { fromMs, untilMs } = roundTimes(statuses)
  if (work === undefined || created === undefined || fromMs === undefined || untilMs === undefined) {
    throw new PageferryError(
      'INTERNAL',
      'The rounds were over before anything was heard of them; see --size.',
    )
  }
  const rate = (slots: number[], from: number, until: number): number => {
    const first = Math.ceil((from - work.startedAtMs) / work.slotMs)
    const end = Math.max(first + 1, Math.floor((until - work.startedAtMs) / work.slotMs))
    const chosen = slots.slice(first, end)
    return chosen.reduce((sum, units) => sum + units, 0) / ((chosen.length * work.slotMs) / 1000)
  }
  const start = work.startedAtMs + startMs
  return {
    before: rate(work.units, start, created - work.slotMs),
    preparing: rate(work.units, created, fromMs),
    rounds: rate(work.units, fromMs, untilMs),
    perCpuBefore:
      (1e6 * rate(work.units, start, created - work.slotMs)) / rate(work.cpuUs, start, created - work.slotMs),
    perCpuDuring: (1e6 * rate(work.units, fromMs, untilMs)) / rate(work.cpuUs, fromMs, untilMs),
    pagesBefore: rate(work.dirtiedPages, start, created - work.slotMs),
    pagesDuring: rate(work.dirtiedPages, fromMs, untilMs),
    roundsMs: untilMs - fromMs,
  }
}

/** Means of five slots: single ones jump by the work of one unit. */
function workSeries({ probe }: Move): [number, number][] {
  const { units = [], slotMs = 10 } = probe.before.work ?? {}
  const points: [number, number][] = []
  for (let slot = 0; slot + 5 <= units.length; slot += 5) {
    const sum = units.slice(slot, slot + 5).reduce((total, value) => total + value, 0)
    points.push([slot * slotMs, sum / ((5 * slotMs) / 1000)])
  }
  return points
}
