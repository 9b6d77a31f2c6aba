import type { VerifyReport } from '@pageferry/migration'
import { maxNamedPages } from '@pageferry/migration'
import type { Verifier } from './verifier.js'

/** Adds up the reports of all address spaces. null: nothing is verified. */
export function verifyReportOf(
  members: { verifier: Pick<Verifier, 'report'> | null }[],
): VerifyReport | null {
  const reports = members.flatMap(({ verifier }) => (verifier === null ? [] : [verifier.report]))
  return reports.length === 0 ? null : reports.reduce(add)
}

function add(a: VerifyReport, b: VerifyReport): VerifyReport {
  return {
    when: a.when,
    pages: a.pages + b.pages,
    mismatches: a.mismatches + b.mismatches,
    unproven: a.unproven + b.unproven,
    differing: [...a.differing, ...b.differing].slice(0, maxNamedPages),
    downtimeMs: a.downtimeMs + b.downtimeMs,
    proofMs: a.proofMs + b.proofMs,
  }
}
