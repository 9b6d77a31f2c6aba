import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError } from '@pageferry/base'
import type { LabHost } from '@pageferry/lab'
import { nativeProgram } from '../native.js'

/**
 * A link that is slower than the lab's: everything between the two hosts passes programs/link-relay.c. The kernel could
 * do it with netem, but many have none, and then results could not be compared.
 */
export interface LinkOptions {
  /** Added to the lab's own, half of it in each direction. */
  rttMs: number
  /** Each half of the round trip is up to half of this longer or shorter. */
  jitterMs: number
  /** Mbit/s in each direction, shared by all connections; 0: no limit. */
  rateMbit: number
}

/** The relay alone: what it costs by itself. */
export const bareRelay: Readonly<LinkOptions> = { rttMs: 0, jitterMs: 0, rateMbit: 0 }

export function describeLink({ rttMs, jitterMs, rateMbit }: LinkOptions): string {
  const parts = [
    ...(rttMs > 0 ? [`${rttMs} ms rtt`] : []),
    ...(jitterMs > 0 ? [`${jitterMs} ms jitter`] : []),
    ...(rateMbit > 0 ? [`${rateMbit} Mbit/s`] : []),
  ]
  return parts.length > 0 ? parts.join(', ') : 'relay alone'
}

/** Bytes a second, 0 without a limit. */
export function rateBytes({ rateMbit }: LinkOptions): number {
  return Math.round((rateMbit * 1e6) / 8)
}

const listenTimeoutMs = 10_000
const pollMs = 5

/** Starts a relay on a host, in front of a port of that host. Returns what ends it. */
export async function startRelay(
  host: LabHost,
  port: number,
  targetPort: number,
  link: LinkOptions,
): Promise<() => Promise<void>> {
  const microseconds = (ms: number): string => String(Math.round((ms / 2) * 1000))
  const { pid, output } = await host.start(
    [
      ...[nativeProgram('link-relay'), host.address, String(port), String(targetPort)],
      ...[microseconds(link.rttMs), microseconds(link.jitterMs), String(rateBytes(link))],
    ],
    { cwd: '/' },
  )
  for (const deadline = Date.now() + listenTimeoutMs; ; await sleep(pollMs)) {
    const said = readFileSync(output, 'utf8')
    if (said.includes('listening')) break
    if (said !== '' || Date.now() > deadline) {
      throw new PageferryError('KERNEL', `The relay of the link did not start: ${said.trim()}`)
    }
  }
  return async () => {
    await host.run(['kill', '-KILL', String(pid)], { cwd: '/' })
  }
}

/** Outside of what the services use. */
const dataRelayPort = 7500

/**
 * Puts a relay in front of the source's data address while `use` runs. `via` is an option of migrate.
 */
export async function withLink<T>(
  host: LabHost,
  link: LinkOptions | undefined,
  use: (via: ((dataUrl: string) => Promise<string>) | undefined) => Promise<T>,
): Promise<T> {
  if (link === undefined) return use(undefined)
  let stop: (() => Promise<void>) | undefined
  try {
    return await use(async (dataUrl) => {
      const url = new URL(dataUrl)
      stop = await startRelay(host, dataRelayPort, Number(url.port), link)
      url.port = String(dataRelayPort)
      return url.href
    })
  } finally {
    await stop?.()
  }
}
