import { join } from 'node:path'
import { benchBlackout } from './blackout.js'
import { benchFaults, type FaultsOptions } from './faults.js'
import { measureLimits } from './limits.js'
import type { LinkOptions } from './link/options.js'
import { benchPrecopy } from './precopy.js'
import { DEFAULT_PROBE, PATTERNS } from './probe.js'
import { type Benchmark, median, metricNamed } from './result.js'
import { runInLab } from './run.js'
import { benchSlowdown } from './slowdown.js'

/** Three runs, so that there is a middle one. */
const runs = 3

const faults: FaultsOptions = { ...DEFAULT_PROBE, mode: 'postcopy', push: true, prefetch: true, runs }

/** Faults with an otherwise idle link, for comparison with faults beside saturated bulk lanes. */
const demandRun: FaultsOptions = { ...faults, sizeMiB: 64, push: false, prefetch: false }

const pushedRuns: FaultsOptions[] = [
  { ...faults, sizeMiB: 64 },
  ...PATTERNS.map((pattern) => ({ ...faults, sizeMiB: 512, pattern })),
  { ...faults, sizeMiB: 2048, runs: 1 },
  { ...faults, sizeMiB: 512, threads: 4, writeRatio: 0.5, mode: 'hybrid', dirtyRate: 10_000 },
]

/** A link between two sites. */
const farLink: LinkOptions = { rttMs: 10, jitterMs: 0, rateMbit: 100 }

/**
 * Without push every page costs a round trip of its own, even pages that only the probe's comparison needs. That takes
 * twelve minutes for 256 MiB. So the memory is smaller; it shows the cost of a touch.
 */
const farRuns: FaultsOptions[] = [
  { ...faults, sizeMiB: 256, pattern: 'zipf', runs: 1, link: farLink },
  { ...faults, sizeMiB: 16, pattern: 'zipf', push: false, prefetch: false, runs: 1, link: farLink },
]

/** Compares the 99th percentile of stalls: how much longer threads wait because unrequested pages are under way too. */
function compareP99(pushed: Benchmark, demand: Benchmark): Benchmark {
  const value = median(metricNamed(demand, 'stall p99').values)
  metricNamed(pushed, 'stall p99').limits = [{ name: 'without push', value }]
  return pushed
}

/** `bench all`, which `npm run bench` runs: writes result.json and index.html into a directory. */
export async function benchAll(directory: string, signal?: AbortSignal): Promise<void> {
  const output = { json: join(directory, 'result.json'), html: join(directory, 'index.html') }
  await runInLab(
    output,
    async (lab, limits, report) => {
      const demand = await benchFaults(lab, demandRun, limits, signal)
      report(demand)
      for (const options of pushedRuns) {
        report(compareP99(await benchFaults(lab, options, limits, signal), demand))
      }
      const blackout = { sizesMiB: [64, 512, 2048], dirtyRate: 2000, mode: 'hybrid' as const, runs }
      for (const benchmark of await benchBlackout(lab, blackout, signal)) report(benchmark)
      for (const bulkLanes of [1, 2]) {
        report(
          await benchPrecopy(
            lab,
            { sizeMiB: 512, bulkLanes, dirtyRate: 0, redundancy: 0, runs },
            limits,
            signal,
          ),
        )
      }
      report(await benchSlowdown(lab, { sizeMiB: 1024, dirtyRate: 10_000, runs }, signal))
      const far = await measureLimits(lab, farLink)
      report(far.benchmark)
      for (const options of farRuns) report(await benchFaults(lab, options, far.limits, signal))
    },
    { signal },
  )
  process.stdout.write(`Written: ${output.json} and ${output.html}\n`)
}
