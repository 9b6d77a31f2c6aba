import type { Lab } from '@pageferry/lab'
import type { LinkOptions } from './options.js'
import { shapeCable } from './qdisc.js'
import { withRelay } from './relay.js'

/**
 * Runs `use` while a slower link connects the hosts of a lab. The kernel provides it if it can. Otherwise a relay in
 * user space does, which `via` (an option of migrate) puts in front of the source's data address.
 */
export async function withLink<T>(
  lab: Lab,
  link: LinkOptions | undefined,
  use: (via: ((dataUrl: string) => Promise<string>) | undefined) => Promise<T>,
): Promise<T> {
  if (link === undefined) return use(undefined)
  const undo = await shapeCable(lab, link)
  if (undo === null) return withRelay(lab.a, link, use)
  try {
    return await use(undefined)
  } finally {
    await undo()
  }
}
