import { BlockList, isIP, isIPv6 } from 'node:net'
import { PageferryError } from '@pageferry/base'

/**
 * Where a service may listen. A client of a service can read any process's memory and start processes as root, and
 * there is no TLS and no authentication yet. So only addresses that other machines cannot reach are accepted, unless
 * the user insists.
 */
const loopback = new BlockList()
loopback.addSubnet('127.0.0.0', 8, 'ipv4')
loopback.addAddress('::1', 'ipv6')

/** The network of `pageferry lab`: bridges inside this machine, not routed. */
export const labNetwork = '10.77.0.0/16'
const lab = new BlockList()
lab.addSubnet('10.77.0.0', 16, 'ipv4')

function family(host: string): 'ipv4' | 'ipv6' {
  return isIPv6(host) ? 'ipv6' : 'ipv4'
}

export function isLoopback(host: string): boolean {
  return isIP(host) !== 0 && loopback.check(host, family(host))
}

/**
 * @returns the address to bind, a literal IP address unless anything is allowed.
 * @throws BAD_REQUEST with the reason when the policy forbids the address.
 */
export function checkListenAddress(host: string, insecureListenAnywhere = false): string {
  // Do not ask the resolver: /etc/hosts may map this name to anything.
  if (host === 'localhost') return '127.0.0.1'
  if (insecureListenAnywhere) return host
  if (isIP(host) !== 0 && (isLoopback(host) || lab.check(host, family(host)))) return host
  throw new PageferryError(
    'BAD_REQUEST',
    `refusing to listen on ${host}: the services have no TLS and no authentication yet, so only loopback ` +
      `and lab addresses (${labNetwork}) are accepted; --insecure-listen-anywhere overrides this ` +
      'on a network where every machine is trusted',
    { details: { host } },
  )
}

/** Splits `HOST:PORT`, `[IPV6]:PORT`, `HOST` or `:PORT`; missing parts come from `defaults`. */
export function parseListenAddress(
  text: string,
  defaults: { host: string; port: number },
): { host: string; port: number } {
  const match = /^(?:\[([^\]]+)\]|([^:[\]]*))(?::(\d{1,5}))?$/.exec(text)
  const port = match?.[3] === undefined ? defaults.port : Number(match[3])
  if (match === null || text === '' || port > 65_535) {
    throw new PageferryError('BAD_REQUEST', `${text || 'the empty string'} is not a HOST:PORT to listen on`)
  }
  return { host: match[1] || match[2] || defaults.host, port }
}

/** `http://HOST:PORT`, with brackets around an IPv6 address. */
export function serviceUrl(host: string, port: number): string {
  return `http://${isIPv6(host) ? `[${host}]` : host}:${port}`
}
