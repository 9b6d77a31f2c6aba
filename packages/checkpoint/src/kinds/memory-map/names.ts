import { addressOf, pageBytes } from '@pageferry/base'
import type { AreaMap } from '@pageferry/pages'
import { errnoName } from '../../remote/errno.js'
import type { SkeletonProcess } from '../../remote/skeleton-process.js'
import type { Tell } from '../attributes/entries.js'

/** Names of anonymous memory, which /proc/PID/maps shows (prctl(2), PR_SET_VMA_ANON_NAME). */

const prSetVma = 0x5356_4d41
const prSetVmaAnonName = 0

/** Names the areas of the final map; no round needs the names. */
export function restoreAreaNames(skeleton: SkeletonProcess, map: AreaMap, tell: Tell): void {
  let failures = 0
  for (const { start, nrPages, name } of map.areas) {
    if (name === undefined) continue
    const text = skeleton.put(Buffer.from(`${name}\0`))
    const args = [prSetVma, prSetVmaAnonName, addressOf(start), nrPages * pageBytes, text]
    skeleton.queue(skeleton.pid, 'prctl', args, {
      // A kernel without names refuses each of them for the same reason.
      onError(errno) {
        if (failures++ > 0) return
        tell({
          what: `area-name of memory at ${addressOf(start).toString(16)}, and perhaps of others`,
          reason: `prctl(PR_SET_VMA) on the destination failed with ${errnoName(errno)}`,
        })
      },
    })
  }
}
