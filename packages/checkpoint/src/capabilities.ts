import { readFileSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'

/**
 * Numbers of capabilities(7). Tests that removed each capability showed which ones each side needs (deploy/README.md).
 */
const source = {
  ...{
    CAP_SYS_ADMIN: 21,
    CAP_SYS_PTRACE: 19,
    CAP_DAC_OVERRIDE: 1,
    CAP_KILL: 5,
    CAP_SETUID: 7,
    CAP_SETGID: 6,
  },
} as const
const destination = { ...source, CAP_SETPCAP: 8 } as const

/** Names of the capabilities that this process lacks for its side of a migration. */
export function missingCapabilities(side: 'source' | 'destination'): string[] {
  const m = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))
  const effective = BigInt(`0x${m?.[1] ?? '0'}`)
  const needed = Object.entries(side === 'source' ? source : destination)
  return needed.filter(([, number]) => (effective & (1n << BigInt(number))) === 0n).map(([name]) => name)
}

/** Refuses now. Without these the freeze would fail, or the steps after the commit, which cannot be undone. */
export function requireCapabilities(side: 'source' | 'destination'): void {
  const missing = missingCapabilities(side)
  if (missing.length === 0) return
  throw new PageferryError('NOT_PERMITTED', `the service of the ${side} lacks ${missing.join(', ')}`)
}
