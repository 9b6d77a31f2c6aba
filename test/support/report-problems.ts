import type { MigrationReport, VerifySetting } from '@pageferry/migration'
import type { Mode } from './combinations.js'

/** What can never be in the report of a migration that went well. */
export function problemsOf(
  report: MigrationReport,
  mode: Mode,
  verified: VerifySetting = 'after-resume',
): string[] {
  const problems: string[] = []
  const expect = (condition: boolean, problem: string): void => {
    if (!condition) problems.push(problem)
  }
  const { pages, verify, rounds, faults } = report
  expect(report.mode === mode, `the report says mode ${report.mode}`)
  expect(report.outcome === 'migrated', `the outcome is ${report.outcome}`)
  if (verified !== 'off') {
    expect(verify !== null && verify.mismatches === 0, `verify found ${verify?.mismatches} mismatches`)
    expect(verify?.unproven === 0, `${verify?.unproven} pages were not compared`)
    expect((verify?.pages ?? 0) >= pages.parent + pages.present, `only ${verify?.pages} pages were compared`)
  } else expect(verify === null, 'pages were compared, which nobody has asked for')
  expect(report.blackoutMs > 0, 'there was no blackout')
  expect(report.bytesOnWire > 0, 'nothing went over the wire')
  expect(report.totalMs >= report.blackoutMs, 'the whole took less time than a part of it')
  expect(faults.count >= 0 && faults.maxUs >= faults.p50Us, 'the times of the faults contradict each other')
  expect(pages.hole >= 0 && pages.zero >= 0, 'a count of pages is negative')
  if (mode === 'postcopy') {
    expect(rounds.length === 0, `${rounds.length} rounds in mode postcopy`)
    expect(pages.parent === 0, `${pages.parent} pages are unchanged since a round, without rounds`)
    expect(pages.lazy > 0, 'nothing was lazy in mode postcopy')
  } else expect(rounds.length > 0, `no rounds in mode ${mode}`)
  if (mode === 'precopy') {
    expect(pages.lazy === 0, `${pages.lazy} lazy pages in mode precopy`)
    expect(report.pushedPages === 0, `${report.pushedPages} pages were pushed in mode precopy`)
  }
  return problems
}
