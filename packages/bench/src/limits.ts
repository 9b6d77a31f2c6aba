import { join } from 'node:path'
import { PageferryError, packageRoot } from '@pageferry/base'
import type { Lab } from '@pageferry/lab'
import { encode, fromBuckets, merge, percentileUs } from './histogram.js'
import { describeLink, type LinkOptions, rateBytes } from './link/options.js'
import { type LinkMeasurement, type LinkPlan, linkPorts } from './link/protocol.js'
import { shapeCable } from './link/qdisc.js'
import { bareRelay, startRelay } from './link/relay.js'
import { nativeProgram } from './native.js'
import type { TouchRecord } from './probe.js'
import { type Benchmark, emptyBenchmark, median } from './result.js'

/**
 * The limits of this machine without pageferry, measured in the same run as everything else: the denominators of all
 * ratios. The kernel's part is a C program, so that it contains no cost of ours. The link's part is plain Node between
 * the two hosts of the lab, because that is the limit of a data plane in JavaScript.
 */

/** Output of programs/kernel-limits.c. Gigabytes are 10^9 bytes. */
interface KernelMeasurement {
  readv: { gigabytesPerS: number[] }
  uffdCopy: { batchPages: number; gigabytesPerS: number[] }[]
  firstTouch: TouchRecord
  localFault: TouchRecord
}

/** The numbers by which results are divided. */
export interface Limits {
  /** The first touch of a page that UFFDIO_COPY has installed, the median. */
  firstTouchUs: number
  /** Plain TCP, the better of both message sizes. */
  tcpGigabytesPerS: number
  /** Round trip of a small WebSocket message, plus a fault that is served in its own process. */
  demandFaultUs: number
}

/** Time that every migration costs: all pages must be installed, and the workload has to touch them. */
export interface InstallTimes {
  /** UFFDIO_COPY of as much memory as the workload has, while another process has as much: one time per run. */
  copyMs: number[]
  /** The first touch of all of it. */
  touchMs: number[]
}

export async function measureInstall(lab: Lab, sizeMiB: number, runs: number): Promise<InstallTimes> {
  const times: InstallTimes = { copyMs: [], touchMs: [] }
  for (let run = 0; run < runs; run++) {
    const command = [nativeProgram('kernel-limits'), '--install', String(sizeMiB)]
    const { copyMs, touchMs } = (await runIn(lab, command)) as { copyMs: number; touchMs: number }
    times.copyMs.push(copyMs)
    times.touchMs.push(touchMs)
  }
  return times
}

async function runIn(lab: Lab, command: string[]): Promise<unknown> {
  const { status, stdout, stderr } = await lab.a.run(command, { cwd: '/' })
  if (status === 0) return JSON.parse(stdout)
  throw new PageferryError('KERNEL', `${command.slice(0, 2).join(' ')} failed: ${stderr.trim()}`)
}

/** Ports of the relay in front of `linkPorts`. */
const relayPorts = { tcp: 7411, ws: 7412 } as const

const plainPlan = {
  roundTrips: 4000,
  warmUpRoundTrips: 1000,
  throughputBytes: 256 * 2 ** 20,
  throughputRounds: 5,
}

/** One second's worth of bytes, and some seconds of round trips. */
function planFor(link: LinkOptions) {
  const perSecond = rateBytes(link)
  const throughputBytes =
    perSecond === 0 ? plainPlan.throughputBytes : Math.min(perSecond, plainPlan.throughputBytes)
  const roundTrips = link.rttMs === 0 ? plainPlan.roundTrips : 200
  return { roundTrips, warmUpRoundTrips: 100, throughputBytes, throughputRounds: 1 }
}

/** Measures between the hosts, directly or through the relay of a given link. */
async function measureLink(lab: Lab, link?: LinkOptions, relayed = false): Promise<LinkMeasurement> {
  const program = (name: string): string => join(packageRoot('bench'), 'dist/src/link', name)
  const { address } = lab.b
  const ports = relayed ? relayPorts : linkPorts
  const plan: LinkPlan = { address, ports, ...(link ? planFor(link) : plainPlan) }
  const stops: (() => Promise<unknown>)[] = []
  try {
    const server = await lab.b.start([process.execPath, program('serve.js'), address], { cwd: '/' })
    stops.push(() => lab.b.run(['kill', '-KILL', String(server.pid)], { cwd: '/' }))
    if (link !== undefined && relayed) {
      for (const transport of ['tcp', 'ws'] as const) {
        const ports = [`${relayPorts[transport]}:${linkPorts[transport]}`]
        stops.push(await startRelay(lab.b, { ports }, link))
      }
    }
    const measured = await runIn(lab, [process.execPath, program('measure.js'), JSON.stringify(plan)])
    return measured as LinkMeasurement
  } finally {
    for (const stop of stops) await stop()
  }
}

/** null: the kernel cannot do it. */
async function measureShaped(lab: Lab, link: LinkOptions): Promise<LinkMeasurement | null> {
  const undo = await shapeCable(lab, link)
  if (undo === null) return null
  try {
    return await measureLink(lab, link)
  } finally {
    await undo()
  }
}

function addThroughput(benchmark: Benchmark, name: string, values: number[]): void {
  benchmark.metrics.push({ name, unit: 'GB/s', better: 'higher', values })
}

function addLatency(benchmark: Benchmark, name: string, encoded: string): void {
  benchmark.histograms.push({ name, runs: [encoded] })
  for (const p of [50, 99]) {
    const values = [percentileUs(merge([encoded]), p)]
    benchmark.metrics.push({ name: `${name} p${p}`, unit: 'µs', better: 'lower', values })
  }
}

function addLink(benchmark: Benchmark, measured: LinkMeasurement, where: string): void {
  for (const [transport, name] of [
    ['tcp', 'TCP'],
    ['ws', 'ws'],
  ] as const) {
    addLatency(benchmark, `${name} round trip${where}`, measured[transport].roundTrip)
    for (const { messageBytes, gigabytesPerS } of measured[transport].throughput) {
      addThroughput(benchmark, `${name}, ${messageBytes / 1024} KiB messages${where}`, gigabytesPerS)
    }
  }
}

/** Takes about five seconds, and longer with a slower link. */
export async function measureLimits(
  lab: Lab,
  link?: LinkOptions,
): Promise<{ limits: Limits; benchmark: Benchmark }> {
  const kernel = (await runIn(lab, [nativeProgram('kernel-limits')])) as KernelMeasurement
  const plain = await measureLink(lab)
  const benchmark = emptyBenchmark('limits', 'limits of this machine', { link })
  for (const { batchPages, gigabytesPerS } of kernel.uffdCopy) {
    addThroughput(
      benchmark,
      `UFFDIO_COPY, ${batchPages} ${batchPages === 1 ? 'page' : 'pages'}`,
      gigabytesPerS,
    )
  }
  addThroughput(benchmark, 'process_vm_readv, 1 MiB', kernel.readv.gigabytesPerS)
  const encoded = ({ buckets, maxNs }: TouchRecord): string => encode(fromBuckets(buckets, maxNs))
  const localFault = encoded(kernel.localFault)
  const firstTouch = encoded(kernel.firstTouch)
  addLatency(benchmark, 'local fault', localFault)
  addLatency(benchmark, 'first touch of an installed page', firstTouch)
  addLink(benchmark, plain, '')
  benchmark.raw.push({ kernel, link: plain })
  let used = plain
  if (link !== undefined) {
    const shaped = await measureShaped(lab, link)
    if (shaped === null) {
      // The difference to the lines above is the cost of the relay itself.
      addLink(benchmark, await measureLink(lab, bareRelay, true), ` (${describeLink(bareRelay)})`)
    }
    used = shaped ?? (await measureLink(lab, link, true))
    addLink(benchmark, used, ` (${describeLink(link)})`)
    benchmark.title += `, ${describeLink(link)} by ${shaped === null ? 'a relay: this kernel lacks netem or TBF' : 'the kernel'}`
  }
  const best = (rates: { gigabytesPerS: number[] }[]): number =>
    Math.max(...rates.map(({ gigabytesPerS }) => median(gigabytesPerS)))
  const p50 = (encoded: string): number => percentileUs(merge([encoded]), 50)
  const limits = {
    firstTouchUs: p50(firstTouch),
    tcpGigabytesPerS: best(used.tcp.throughput),
    demandFaultUs: p50(used.ws.roundTrip) + p50(localFault),
  }
  return { limits, benchmark }
}
