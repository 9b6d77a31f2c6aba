import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError } from '@pageferry/base'
import type { LabHost } from '@pageferry/lab'
import { nativeProgram } from '../native.js'
import { type LinkOptions, rateBytes } from './options.js'

/**
 * Everything between the two hosts passes programs/link-relay.c: for kernels without netem (link/qdisc.ts), and for tests,
 * which shall find the same link everywhere.
 */

/** The relay alone: what it costs by itself. */
export const bareRelay: Readonly<LinkOptions> = { rttMs: 0, jitterMs: 0, rateMbit: 0 }

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

/** Puts a relay in front of the source's data address while `use` runs. `via` is an option of migrate. */
export async function withRelay<T>(
  host: LabHost,
  link: LinkOptions,
  use: (via: (dataUrl: string) => Promise<string>) => Promise<T>,
): Promise<T> {
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
