import t from 'tap'
import {
  type DestinationReport,
  faultsFromSamples,
  formatReport,
  mergeReports,
  percentile,
  type SourceReport,
  type VerifyReport,
} from '../src/index.js'

const source: SourceReport = {
  id: 'm1',
  mode: 'hybrid',
  outcome: 'migrated',
  workload: { pid: 42, comm: 'python3', threads: 1 },
  rounds: [{ round: 1, pages: 65536, zeroPages: 100, bytes: 268435456, durationMs: 212.5 }],
  pages: { present: 12, parent: 60000, lazy: 5524, zero: 100, hole: 3 },
  bytesOnWire: 290455552,
  compressed: { pages: 0, bytes: 0 },
  blackoutMs: 30.456,
  blackout: { freezeMs: 2, captureMs: 5 },
  totalMs: 1234.567,
  notMoved: [{ what: 'session-keyring of the process', reason: 'keys stay', count: 1 }],
}
const differing = [{ address: '0x7f0000001000', area: '[heap]' }]
const verify: VerifyReport = {
  ...{ when: 'after-resume', pages: 65536, mismatches: 0, unproven: 0, differing: [] },
  ...{ downtimeMs: 1.5, proofMs: 120 },
}
const destination: DestinationReport = {
  blackout: { restoreMs: 8, resumeMs: 1 },
  faults: faultsFromSamples([100, 300, 200]),
  pushedPages: 5500,
  prefetchedPages: 40,
  usefulPrefetchedPages: 38,
  drainMs: 90.1,
  verify,
  notMoved: [{ what: 'cpu-affinity of thread 42', reason: 'no processor 7', count: 1 }],
}

t.test('merging', async (t) => {
  const report = mergeReports(source, destination)
  t.strictSame(report.blackout, { freezeMs: 2, captureMs: 5, transferMs: 14.46, restoreMs: 8, resumeMs: 1 })
  t.equal(report.blackoutMs, 30.46)
  t.strictSame(Object.keys(report), [
    'id',
    'mode',
    'outcome',
    'workload',
    'rounds',
    'pages',
    'bytesOnWire',
    'compressed',
    'blackoutMs',
    'blackout',
    'faults',
    'pushedPages',
    'prefetchedPages',
    'usefulPrefetchedPages',
    'drainMs',
    'totalMs',
    'verify',
    'notMoved',
  ])
  t.same(report.notMoved, [...source.notMoved, ...destination.notMoved])
  const alone = mergeReports({ ...source, outcome: 'resumed', blackoutMs: 6 })
  t.equal(alone.verify, null)
  t.equal(alone.faults.count, 0)
  t.equal(alone.blackout.transferMs, 0, 'never negative')
})

t.test('percentiles are nearest rank', async (t) => {
  const tens = Float64Array.from({ length: 10 }, (_, i) => i + 1)
  t.equal(percentile(tens, 50), 5)
  t.equal(percentile(tens, 90), 9)
  t.equal(percentile(tens, 91), 10)
  t.equal(percentile(tens, 0), 1)
  t.equal(percentile(tens, 100), 10)
  t.equal(percentile([], 50), 0)
  t.strictSame(faultsFromSamples([300, 100, 200]), {
    count: 3,
    p50Us: 200,
    p90Us: 300,
    p99Us: 300,
    maxUs: 300,
    stallMs: 0.6,
  })
  t.equal(faultsFromSamples([]).maxUs, 0)
})

t.test('the readable form', async (t) => {
  const lines = formatReport(mergeReports(source, destination))
  t.match(lines[0], 'Migration m1 (hybrid) of python3, pid 42, 1 thread')
  t.match(lines.join('\n'), /round 1 +65,536 pages, 100 of them zero, 256\.0 MiB in 212\.5 ms/)
  t.match(lines.join('\n'), /40 pages asked for ahead, 38 known to be useful/)
  t.match(lines.join('\n'), /65,536 pages compared in 120\.0 ms while it ran, all equal/)
  t.notMatch(lines.join('\n'), /NaN|undefined/)
  t.match(lines.join('\n'), 'not moved  cpu-affinity of thread 42: no processor 7')
  const bad = formatReport(
    mergeReports(source, { ...destination, verify: { ...verify, pages: 9, mismatches: 2, differing } }),
  )
  t.match(bad.join('\n'), /2 of 9 pages DIFFER, 0 not compared\n +0x7f0000001000 \[heap\]/)
  const strict = { ...verify, when: 'before-resume', downtimeMs: 80 } as const
  t.match(
    formatReport(mergeReports(source, { ...destination, verify: strict })).join('\n'),
    /compared, 80\.0 ms of the downtime, all equal/,
  )
})
