import { existsSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError } from '@pageferry/base'
import { withReach } from '@pageferry/lab'
import { migrate, type Status } from '@pageferry/service/client'
import { type FaultsOptions, faultsBenchmark, migrationOf } from './faults.js'
import { requireMigrated, type TimedStatus } from './moves.js'
import { readProbeResult, requireRight } from './probe.js'
import { newResultFile, type ResultFile } from './result.js'
import { type OutputOptions, prepareOutput, writeOutput } from './run.js'
import { formatBenchmark } from './table.js'

export interface RemoteOptions {
  source: string
  destination: string
  pid: number
  /** The probe's --result, on the destination. */
  result: string
}

const pollMs = 100
/** The probe touches and compares all of its memory before it writes its result. */
const resultTimeoutMs = 900_000

/**
 * `bench faults --source …`: moves a probe that `bench probe` has started on the source. It runs on the destination,
 * where the probe writes its result. It does not measure the limits of the two machines.
 */
export async function faultsBetweenMachines(
  { source, destination, pid, result: path }: RemoteOptions,
  options: FaultsOptions,
  output: OutputOptions,
  signal?: AbortSignal,
): Promise<ResultFile> {
  prepareOutput(output)
  if (existsSync(path)) throw new PageferryError('BAD_REQUEST', `${path} is there already: remove it first.`)
  const statuses: TimedStatus[] = []
  const note = (status: Status): void => {
    statuses.push({ atMs: Date.now(), status })
  }
  const request = { source, destination, pid, ...migrationOf(options) }
  const report = requireMigrated(
    await withReach((reach) => migrate(request, { onStatus: note, signal, reach })),
  )
  const deadline = Date.now() + resultTimeoutMs
  while (!existsSync(path)) {
    if (Date.now() > deadline) {
      throw new PageferryError('TIMEOUT', `The probe has not written ${path}: is this the destination?`)
    }
    await sleep(pollMs, undefined, { signal })
  }
  const probe = readProbeResult(path)
  requireRight(probe)
  const moved = {
    ...options,
    ...{ pattern: probe.pattern, threads: probe.threads, sizeMiB: probe.pages / 256 },
  }
  const file = newResultFile()
  file.benchmarks.push(faultsBenchmark(moved, [{ probe, report, statuses }]))
  process.stdout.write(formatBenchmark(file.benchmarks[0] as never))
  writeOutput(file, output)
  return file
}
