import { PageferryError } from '@pageferry/base'
import type { DifferingPage, VerifyReport } from './report.js'

type Found = Pick<VerifyReport, 'mismatches' | 'unproven' | 'differing'>

/** Pages that are named one by one; the others are only counted. */
export const maxNamedPages = 20

/**
 * VERIFY_FAILED, one sentence with the addresses of pages. `details` are `found`.
 * @param reason why pages are unproven
 */
export function verifyError(found: Found, reason = ''): PageferryError {
  const { mismatches, unproven, differing } = found
  const parts: string[] = []
  if (mismatches > 0) {
    const differ =
      mismatches === 1 ? 'page of the restored process differs' : 'pages of the restored process differ'
    parts.push(`${mismatches} ${differ} from the original`)
  }
  if (unproven > 0 || mismatches === 0) {
    parts.push(`${unproven} could not be compared${reason === '' ? '' : ` (${reason})`}`)
  }
  const names = differing.map(({ address, area }) => (area === '' ? address : `${address} ${area}`))
  const more = mismatches + unproven > names.length ? ', …' : ''
  const which = names.length === 0 ? '' : `: ${names.join(', ')}${more}`
  return new PageferryError('VERIFY_FAILED', `${parts.join(', ')}${which}`, { details: { ...found } })
}

/** The same from a peer's error: numbers and addresses only, and none of the peer's text. */
export function foundByPeer(details: Record<string, unknown> = {}): Found {
  const count = (value: unknown): number => (Number.isSafeInteger(value) ? Math.max(0, value as number) : 0)
  const list = Array.isArray(details.differing) ? details.differing.slice(0, maxNamedPages) : []
  const differing = list
    .map((each: Partial<DifferingPage> | null) => String(each?.address))
    .filter((address) => /^0x[0-9a-f]{1,16}$/.test(address))
    .map((address) => ({ address, area: '' }))
  return { mismatches: count(details.mismatches), unproven: count(details.unproven), differing }
}
