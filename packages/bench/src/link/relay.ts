import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError } from '@pageferry/base'
import type { LabHost } from '@pageferry/lab'
import { nativeProgram } from '../native.js'
import { type LinkOptions, rateBytes } from './options.js'

/**
 * All traffic between the two hosts goes through programs/link-relay.c. It serves kernels without netem
 * (link/qdisc.ts), and tests, which get the same link everywhere.
 */

/** The relay without delay and limit, to measure its own cost. */
export const bareRelay: Readonly<LinkOptions> = { rttMs: 0, jitterMs: 0, rateMbit: 0 }

const listenTimeoutMs = 10_000
const pollMs = 5

export interface RelayPlan {
  /** Its listening address. Default: the host's own address. */
  address?: string
  /** `PORT` or `PORT:TARGET-PORT` of the host each. They share the rate of the link, like connections on one cable. */
  ports: (number | string)[]
}

/** Starts a relay on a host, in front of ports of that host. Returns a function that ends it. */
export async function startRelay(
  host: LabHost,
  { address = host.address, ports }: RelayPlan,
  link: LinkOptions,
): Promise<() => Promise<void>> {
  const microseconds = (ms: number): string => String(Math.round((ms / 2) * 1000))
  const { pid, output } = await host.start(
    [
      ...[nativeProgram('link-relay'), address, host.address, ports.join(',')],
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

/** Difference between a host's second address and its own, in the last number. */
const secondAddressOffset = 100

/**
 * Puts a relay in front of all ports of the source while `use` runs. It gives the host a second address, at which each
 * port that is open at its own address is reached over the link. So the source may name a port to dial, and that
 * connection goes over the link, too. `via` is an option of migrate.
 */
export async function withRelay<T>(
  host: LabHost,
  link: LinkOptions,
  use: (via: (dataUrl: string) => Promise<string>) => Promise<T>,
): Promise<T> {
  const address = host.address.replace(/\d+$/, (last) => String(Number(last) + secondAddressOffset))
  const changeAddress = async (action: 'add' | 'del'): Promise<void> => {
    const command = ['ip', 'address', action, `${address}/32`, 'dev', 'eth0']
    const { status, stderr } = await host.run(command, { cwd: '/' })
    if (status !== 0) throw new PageferryError('KERNEL', `${command.join(' ')} failed: ${stderr.trim()}`)
  }
  let stop: (() => Promise<void>) | undefined
  await changeAddress('add')
  try {
    return await use(async (dataUrl) => {
      const url = new URL(dataUrl)
      stop = await startRelay(host, { address, ports: await openPorts(host) }, link)
      url.hostname = address
      return url.href
    })
  } finally {
    await stop?.()
    await changeAddress('del')
  }
}

/** TCP ports with a listener at the host's address (/proc/net/tcp, see proc_net_tcp.rst of the kernel). */
async function openPorts(host: LabHost): Promise<number[]> {
  const { stdout } = await host.run(['cat', '/proc/net/tcp'], { cwd: '/' })
  const own = host.address
    .split('.')
    .reverse()
    .map((byte) => Number(byte).toString(16).padStart(2, '0').toUpperCase())
    .join('')
  const listening = '0A'
  return stdout
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .filter(([, local, , state]) => state === listening && local.startsWith(`${own}:`))
    .map(([, local]) => Number.parseInt(local.slice(own.length + 1), 16))
}
