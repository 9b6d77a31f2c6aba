import type { Lab } from '@pageferry/lab'
import type { MigrationOptions, MigrationSettings } from '@pageferry/service/client'
import type { Histogram } from 'hdr-histogram-js'
import { encode, fromBuckets, percentileUs } from './histogram.js'
import { type InstallTimes, type Limits, measureInstall } from './limits.js'
import { blackoutParts, installedOverTime, type Move, moveProbes, warmUp } from './moves.js'
import type { ProbeOptions, ProbeResult, TouchRecord } from './probe.js'
import { type Benchmark, emptyBenchmark, type Limit, median } from './result.js'
import { describeTransport, type TransportOptions, transportOf } from './transport.js'

export interface FaultsOptions extends ProbeOptions, TransportOptions {
  mode: MigrationSettings['mode']
  /** false: pages travel only when they are requested. */
  push: boolean
  /** false: only pages that a thread waits for are requested. */
  prefetch: boolean
  runs: number
}

/** Longest pushDelayMs of the API, one hour: longer than any run. */
const neverMs = 3_600_000

export function migrationOf(options: FaultsOptions): MigrationOptions {
  const { mode, push, prefetch } = options
  return { mode, ...transportOf(options), prefetch, ...(push ? {} : { pushDelayMs: neverMs }) }
}

export function faultsTitle(options: FaultsOptions): string {
  const { pattern, sizeMiB, threads, writeRatio, thinkUs, dirtyRate, redundancy, mode } = options
  const { bulkLanes, push, prefetch } = options
  const details = [
    `${sizeMiB} MiB ${pattern}`,
    mode,
    ...(threads > 1 ? [`${threads} threads`] : []),
    ...(writeRatio > 0 ? [`${Math.round(writeRatio * 100)} % writes`] : []),
    ...(thinkUs > 0 ? [`${thinkUs} µs between touches`] : []),
    ...(dirtyRate > 0 ? [`${dirtyRate} pages/s written before`] : []),
    ...(redundancy > 0 ? [`${Math.round(100 * redundancy)} % redundant`] : []),
    ...(bulkLanes !== undefined ? [`${bulkLanes} bulk lanes`] : []),
    ...(push ? [] : ['no push']),
    ...(prefetch ? [] : ['no prefetch']),
    ...describeTransport(options),
  ]
  return `faults: ${details.join(', ')}`
}

/** `bench faults` in a lab: how long a workload waits for its pages after the move. */
export async function benchFaults(
  lab: Lab,
  options: FaultsOptions,
  limits: Limits | undefined,
  signal?: AbortSignal,
): Promise<Benchmark> {
  await warmUp(lab, options.sizeMiB)
  const { runs, link, sizeMiB } = options
  const install = limits && (await measureInstall(lab, sizeMiB, runs))
  const probe = { ...options, stallUs: options.stallUs ?? (limits && stallThresholdUs(limits)) }
  const moves = await moveProbes(lab, runs, probe, migrationOf(options), { signal, link })
  return faultsBenchmark(options, moves, limits, install)
}

/** The probe's default, DEFAULT_STALL_NS of programs/probe.h. */
const leastStallUs = 3

/**
 * A touch counts as a stall only if it takes longer than the first touch of an existing page. Under a hypervisor with
 * shadow page tables, that first touch takes longer than the 3 µs that distinguish the two elsewhere.
 */
function stallThresholdUs({ firstTouchUs }: Limits): number {
  return Math.max(leastStallUs, 2 * firstTouchUs)
}

function installLimits({ copyMs, touchMs }: InstallTimes): Limit[] {
  const both = copyMs.map((ms, run) => ms + touchMs[run])
  return [
    { name: 'UFFDIO_COPY of all pages', value: median(copyMs) },
    { name: 'UFFDIO_COPY + first touch of all pages', value: median(both) },
  ]
}

/** The part of a record that counts as stalls. */
function stallBuckets({ buckets, stallThresholdNs }: TouchRecord): [number, number][] {
  return buckets.filter(([ns]) => ns >= stallThresholdNs)
}

function seriesOf({ touches }: ProbeResult): [number, number][] {
  const { slotMs, stallUs } = touches.series
  return stallUs.map((us, slot) => [slot * slotMs, us / 1000 / slotMs])
}

/** Summarises any number of moves with the same options. */
export function faultsBenchmark(
  options: FaultsOptions,
  moves: Move[],
  limits?: Limits,
  installTimes?: InstallTimes,
): Benchmark {
  const benchmark = emptyBenchmark('faults', faultsTitle(options), { ...options })
  const install = installTimes && installLimits(installTimes)
  const demand = limits && [{ name: 'ws round trip + local fault', value: limits.demandFaultUs }]
  const add = (name: string, unit: string, of: (move: Move) => number, limits?: Limit[]): void => {
    benchmark.metrics.push({ name, unit, better: 'lower', values: moves.map(of), limits })
  }
  const stalls = moves.map(({ probe }) => fromBuckets(stallBuckets(probe.touches), probe.touches.maxNs))
  const stallAt = (p: number) => (move: Move) =>
    // A value of the histogram stands for up to one percent more.
    Math.min(percentileUs(stalls[moves.indexOf(move)] as Histogram, p), move.probe.touches.maxNs / 1000)
  if (installTimes) {
    const { copyMs: values } = installTimes
    benchmark.metrics.push({ name: 'UFFDIO_COPY of all pages', unit: 'ms', better: 'lower', values })
  }
  add('total stall', 'ms', ({ probe }) => probe.touches.stallNs / 1e6, install)
  add('touch phase', 'ms', ({ probe }) => probe.touchNs / 1e6, install)
  add('stall threshold', 'µs', ({ probe }) => probe.touches.stallThresholdNs / 1000)
  add('touches that stalled', '%', ({ probe }) => (100 * probe.touches.stalls) / probe.touches.count)
  add('stall p50', 'µs', stallAt(50), options.push ? undefined : demand)
  add('stall p99', 'µs', stallAt(99))
  add('longest stall', 'ms', ({ probe }) => probe.touches.maxNs / 1e6)
  add('pause, as the workload sees it', 'ms', ({ probe }) => probe.before.moveGapNs / 1e6)
  add('blackout', 'ms', ({ report }) => report.blackoutMs)
  add('lazy phase', 'ms', ({ report }) => report.drainMs)
  add('faults that were sent', '', ({ report }) => report.faults.count)
  benchmark.metrics.push(
    {
      name: 'pages prefetched',
      unit: '',
      better: 'lower',
      values: moves.map(({ report }) => report.prefetchedPages),
    },
    {
      name: 'of those, useful',
      unit: '',
      better: 'higher',
      values: moves.map(({ report }) => report.usefulPrefetchedPages),
    },
  )
  add('fault p50, as the service sees it', 'µs', ({ report }) => report.faults.p50Us)
  add('bytes on the wire', 'MiB', ({ report }) => report.bytesOnWire / 2 ** 20)
  add('pages that travelled compressed', '', ({ report }) => report.compressed.pages)
  benchmark.histograms.push({
    name: 'touches',
    runs: moves.map(({ probe }) => encode(fromBuckets(probe.touches.buckets, probe.touches.maxNs))),
  })
  if (moves.some(({ probe }) => probe.touches.stalls > 0)) {
    benchmark.histograms.push({ name: 'stalls', runs: stalls.map(encode) })
  }
  benchmark.series.push(
    {
      name: 'threads that wait for a page',
      unit: 'threads',
      kind: 'bars',
      runs: moves.map(({ probe }) => seriesOf(probe)),
    },
    {
      name: 'pages installed',
      unit: 'pages',
      kind: 'line',
      runs: moves.map(({ statuses }) => installedOverTime(statuses)),
    },
  )
  benchmark.parts.push({
    name: 'blackout',
    unit: 'ms',
    runs: moves.map(({ report }) => blackoutParts(report)),
  })
  benchmark.raw.push(...moves.map(({ report, probe: { before } }) => ({ report, before })))
  return benchmark
}
