import { type ErrorInfo, pageOf } from '@pageferry/base'
import { dumpMemoryMap, type FreezerRecord } from '@pageferry/checkpoint'
import { type DifferingPage, foundByPeer, verifyError } from '@pageferry/migration'

/** The original that stays behind. */
export interface KeptOriginal {
  pid: number
  freezer?: FreezerRecord
  isGone: boolean
}

/**
 * Explains to the operator that the destination could not prove the workload's memory. It names the pages, by the map
 * of the frozen original, says where the original is, and how to end it. Only numbers come from the peer: the sentence
 * has commands in it.
 */
export function keptError(error: ErrorInfo, { pid, freezer, isGone }: KeptOriginal): ErrorInfo {
  const found = foundByPeer(error.details)
  const differing = isGone ? found.differing : nameAreas(pid, found.differing)
  const { code, message, details } = verifyError({ ...found, differing })
  if (isGone) return { code, message: `${message}; the original has died and cannot be looked at`, details }
  const path = freezer?.path ?? ''
  const thaw = freezer?.version === 1 ? ` && echo THAWED > ${path}/freezer.state` : ''
  return {
    code,
    message:
      `${message}; the original is kept: process ${pid}, frozen in ${path}. Do not thaw it while it lives, ` +
      `the workload runs on the destination. To end it: kill -9 ${pid}${thaw} && rmdir ${path}`,
    details: { ...details, keptPid: pid, keptCgroup: path },
  }
}

function nameAreas(pid: number, differing: readonly DifferingPage[]): DifferingPage[] {
  const { map } = dumpMemoryMap(pid, new Map(), { tracked: false })
  return differing.map(({ address }) => {
    const area = map.find(pageOf(BigInt(address)))
    return { address, area: area?.path ?? area?.kind ?? 'in no area' }
  })
}
