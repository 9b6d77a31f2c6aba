import { join } from 'node:path'
import { PageferryError } from '@pageferry/base'
import type { Lab } from '@pageferry/lab'
import { encode, fromBuckets, merge, percentileUs } from './histogram.js'
import type { LinkMeasurement } from './link/protocol.js'
import { nativeProgram, packageRoot } from './native.js'
import type { TouchRecord } from './probe.js'
import { type Benchmark, emptyBenchmark, median } from './result.js'

/**
 * What this machine can do without pageferry, measured in the same run as everything else: the denominators of all
 * ratios. The kernel's part is a C program, so that no cost of ours hides in it; the link's part is plain Node between
 * the two hosts of the lab, because that is what a data plane in JavaScript could reach.
 */

/** What programs/kernel-limits.c prints. Gigabytes are 10^9 bytes. */
interface KernelMeasurement {
  readv: { gigabytesPerS: number[] }
  uffdCopy: { batchPages: number; gigabytesPerS: number[] }[]
  localFault: TouchRecord
}

/** The numbers that others divide by. */
export interface Limits {
  /** The best batch size's. */
  uffdCopyGigabytesPerS: number
  /** Plain TCP, the better of both message sizes. */
  tcpGigabytesPerS: number
  /** Round trip of a small WebSocket message, and a fault that is served in its own process. */
  demandFaultUs: number
}

async function runIn(lab: Lab, command: string[]): Promise<unknown> {
  const { status, stdout, stderr } = await lab.a.run(command, { cwd: '/' })
  if (status === 0) return JSON.parse(stdout)
  throw new PageferryError('KERNEL', `${command.slice(0, 2).join(' ')} failed: ${stderr.trim()}`)
}

async function measureLink(lab: Lab): Promise<LinkMeasurement> {
  const program = (name: string): string => join(packageRoot, 'dist/src/link', name)
  const server = await lab.b.start([process.execPath, program('serve.js'), lab.b.address], { cwd: '/' })
  try {
    const measured = await runIn(lab, [process.execPath, program('measure.js'), lab.b.address])
    return measured as LinkMeasurement
  } finally {
    await lab.b.run(['kill', String(server.pid)], { cwd: '/' })
  }
}

/** Takes about five seconds. */
export async function measureLimits(lab: Lab): Promise<{ limits: Limits; benchmark: Benchmark }> {
  const kernel = (await runIn(lab, [nativeProgram('kernel-limits')])) as KernelMeasurement
  const link = await measureLink(lab)
  const benchmark = emptyBenchmark('limits', 'limits of this machine', {})
  const throughput = (name: string, values: number[]): void => {
    benchmark.metrics.push({ name, unit: 'GB/s', better: 'higher', values })
  }
  const latency = (name: string, encoded: string): void => {
    benchmark.histograms.push({ name, runs: [encoded] })
    for (const p of [50, 99]) {
      const values = [percentileUs(merge([encoded]), p)]
      benchmark.metrics.push({ name: `${name} p${p}`, unit: 'µs', better: 'lower', values })
    }
  }
  for (const { batchPages, gigabytesPerS } of kernel.uffdCopy) {
    throughput(`UFFDIO_COPY, ${batchPages} ${batchPages === 1 ? 'page' : 'pages'}`, gigabytesPerS)
  }
  throughput('process_vm_readv, 1 MiB', kernel.readv.gigabytesPerS)
  latency('local fault', encode(fromBuckets(kernel.localFault.buckets, kernel.localFault.maxNs)))
  for (const [transport, name] of [
    ['tcp', 'TCP'],
    ['ws', 'ws'],
  ] as const) {
    latency(`${name} round trip`, link[transport].roundTrip)
    for (const { messageBytes, gigabytesPerS } of link[transport].throughput) {
      throughput(`${name}, ${messageBytes / 1024} KiB messages`, gigabytesPerS)
    }
  }
  benchmark.raw.push({ kernel, link })
  const best = (rates: { gigabytesPerS: number[] }[]): number =>
    Math.max(...rates.map(({ gigabytesPerS }) => median(gigabytesPerS)))
  const p50 = (name: string): number => {
    const { runs } = benchmark.histograms.find((histogram) => histogram.name === name) as { runs: string[] }
    return percentileUs(merge(runs), 50)
  }
  const limits = {
    uffdCopyGigabytesPerS: best(kernel.uffdCopy),
    tcpGigabytesPerS: best(link.tcp.throughput),
    demandFaultUs: p50('ws round trip') + p50('local fault'),
  }
  return { limits, benchmark }
}
