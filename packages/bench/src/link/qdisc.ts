import { PageferryError } from '@pageferry/base'
import type { Lab, LabHost } from '@pageferry/lab'
import { type LinkOptions, rateBytes } from './options.js'

/**
 * A slower cable in the kernel: delay by netem, rate by TBF, for the packets that each host sends (tc-netem(8),
 * tc-tbf(8)).
 */

/** Packets in flight: 100 ms of 10 Gbit/s. */
const limitPackets = 100_000
/** Length of the queue in front of a narrow link, as in a router. */
const queueMs = 50
/** At least one TCP segment as the kernel passes it down, and a hundredth of a second. */
const minBurstBytes = 128 * 1024

/** Queueing disciplines from the outside in. */
export function qdiscsOf(link: LinkOptions): string[][] {
  const { rttMs, jitterMs, rateMbit } = link
  const us = (ms: number): string => `${Math.round((ms / 2) * 1000)}us`
  const limit = ['limit', String(limitPackets)]
  const isLater = rttMs > 0 || jitterMs > 0
  const burst = Math.max(minBurstBytes, Math.round(rateBytes(link) / 100))
  return [
    ...(isLater ? [['netem', 'delay', us(rttMs), us(jitterMs), ...limit]] : []),
    ...(rateMbit > 0
      ? [['tbf', 'rate', `${rateMbit}mbit`, 'burst', String(burst), 'latency', `${queueMs}ms`]]
      : // Without it netem lets a packet with a shorter delay overtake.
        jitterMs > 0
        ? [['pfifo', ...limit]]
        : []),
  ]
}

const device = 'eth0'

async function add(host: LabHost, qdiscs: string[][]): Promise<'done' | 'lacking'> {
  for (const [i, qdisc] of qdiscs.entries()) {
    const place = i === 0 ? ['root', 'handle', '1:'] : ['parent', '1:1', 'handle', '2:']
    const command = ['tc', 'qdisc', 'add', 'dev', device, ...place, ...qdisc]
    const { status, stderr } = await host.run(command, { cwd: '/' })
    if (status === 0) continue
    if (stderr.includes('qdisc kind is unknown')) return 'lacking'
    throw new PageferryError('KERNEL', `${command.join(' ')} on host ${host.name} failed: ${stderr.trim()}`)
  }
  return 'done'
}

/** Fails if there is no queueing discipline, which does not matter. */
async function remove(host: LabHost): Promise<void> {
  await host.run(['tc', 'qdisc', 'del', 'dev', device, 'root'], { cwd: '/' })
}

/**
 * Makes the cable between the hosts slower. Returns a function that makes it fast again. null: this kernel lacks a
 * required queueing discipline, and the cable is as it was.
 */
export async function shapeCable(lab: Lab, link: LinkOptions): Promise<(() => Promise<void>) | null> {
  const qdiscs = qdiscsOf(link)
  const undo = async (): Promise<void> => {
    for (const host of [lab.a, lab.b]) await remove(host)
  }
  let done = false
  try {
    for (const host of [lab.a, lab.b]) if ((await add(host, qdiscs)) === 'lacking') return null
    done = true
    return undo
  } finally {
    if (!done) await undo()
  }
}
