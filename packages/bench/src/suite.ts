import { join } from 'node:path'
import { benchBlackout } from './blackout.js'
import { benchFaults, type FaultsOptions } from './faults.js'
import { benchPrecopy } from './precopy.js'
import { DEFAULT_PROBE, PATTERNS } from './probe.js'
import { runInLab } from './run.js'
import { benchSlowdown } from './slowdown.js'

/** One run more than two, so that there is a middle; the whole suite takes about ten minutes on two cores. */
const runs = 3

const faults: FaultsOptions = { ...DEFAULT_PROBE, mode: 'postcopy', push: true, prefetch: true, runs }

/** The ones of issue 3's table of targets that fit into a quarter of an hour. */
const faultRuns: FaultsOptions[] = [
  { ...faults, sizeMiB: 64 },
  ...PATTERNS.map((pattern) => ({ ...faults, sizeMiB: 512, pattern })),
  { ...faults, sizeMiB: 2048, runs: 1 },
  { ...faults, sizeMiB: 64, push: false },
  { ...faults, sizeMiB: 512, threads: 4, writeRatio: 0.5, mode: 'hybrid', dirtyRate: 10_000 },
]

/** `bench all`, which `npm run bench` runs: result.json and index.html in a directory. */
export async function benchAll(directory: string, signal?: AbortSignal): Promise<void> {
  const output = { json: join(directory, 'result.json'), html: join(directory, 'index.html') }
  await runInLab(
    output,
    async (lab, limits, report) => {
      for (const options of faultRuns) report(await benchFaults(lab, options, limits, signal))
      const blackout = { sizesMiB: [64, 512, 2048], dirtyRate: 2000, mode: 'hybrid' as const, runs }
      for (const benchmark of await benchBlackout(lab, blackout, signal)) report(benchmark)
      for (const bulkLanes of [1, 2]) {
        report(await benchPrecopy(lab, { sizeMiB: 512, bulkLanes, dirtyRate: 0, runs }, limits, signal))
      }
      report(await benchSlowdown(lab, { sizeMiB: 1024, dirtyRate: 10_000, runs }, signal))
    },
    { signal },
  )
  process.stdout.write(`Written: ${output.json} and ${output.html}\n`)
}
