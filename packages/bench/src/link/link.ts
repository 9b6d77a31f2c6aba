import type { Lab } from '@pageferry/lab'
import type { LinkOptions } from './options.js'
import { shapeCable } from './qdisc.js'
import { withRelay } from './relay.js'

/**
 * Runs `use` while the hosts of a lab are connected by a slower link: by the kernel where it has what that needs, else
 * through a relay in user space, which `via` (an option of migrate) puts in front of the source's data address.
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
