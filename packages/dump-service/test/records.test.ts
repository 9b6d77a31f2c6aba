import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { encodePagemap, PE_LAZY, PE_PRESENT } from '@pageferry/images'
import { DEFAULT_SETTINGS, type DumpRequest } from '@pageferry/service'
import type { WorkerChannel, WorkerSpec } from '@pageferry/service/worker'
import t, { type Test } from 'tap'
import { SourceRecords } from '../src/records.js'
import { ReportInProgress } from '../src/report.js'

const lanes = (bytesSent: number) => ({ bytesSent, compressed: { pages: 0, bytes: 0 } })
const request: DumpRequest = { ...DEFAULT_SETTINGS, pid: 4711 }

function specOf(t: Test): WorkerSpec<DumpRequest> {
  const stateDir = mkdtempSync(join(tmpdir(), 'pageferry-records-'))
  t.teardown(() => rmSync(stateDir, { recursive: true }))
  return { id: '0', role: 'source', token: '', host: '', stateDir, request, records: [], createdAt: '' }
}

/** Like the service: what is recorded stands in the spec of the next worker. */
function channelTo(spec: WorkerSpec): WorkerChannel {
  return {
    isRehearsed: false,
    send: () => {},
    record: async (record) => {
      spec.records.push(record)
    },
    onCancel: () => {},
    exit: () => {},
  }
}

t.test('what a successor knows', async (t) => {
  const spec = specOf(t)
  const records = new SourceRecords(spec, channelTo(spec))
  t.same([records.ports, records.workload.comm, records.dumpEnd], [undefined, undefined, null])
  t.throws(() => records.finalRound, { code: 'INTERNAL' })
  const tasks = [{ pid: 4711, startTime: '99', asId: 1 }]
  await records.save({ comm: 'odd', threads: 3, tasks })
  await records.save({ ports: { main: 7, fault: 8 } })

  const killedEarly = new SourceRecords(spec, channelTo(spec))
  t.same(killedEarly.ports, { main: 7, fault: 8 })
  t.match(killedEarly.workload, { comm: 'odd', tasks })
  t.match(
    new ReportInProgress(spec, 'hybrid', killedEarly).now(lanes(0)),
    { workload: { pid: 4711, comm: 'odd', threads: 3 } },
    'the report of a worker that was killed early has a name for the process',
  )

  records.createFiles([1, 2])
  const killedInTheFreeze = new SourceRecords(spec, channelTo(spec))
  t.equal(killedInTheFreeze.dumpEnd, null, 'the files are there, and say nothing')

  const runs = Float64Array.of(16, 2, 20, 1, 30, 4)
  const flags = Uint8Array.of(PE_LAZY, PE_PRESENT, PE_LAZY)
  records.savePagemap(1, encodePagemap({ pagesId: 1, runs, nrRuns: 3, flags }))
  records.savePagemap(2, encodePagemap({ pagesId: 1, runs, nrRuns: 1, flags }))
  const report = new ReportInProgress(spec, 'hybrid', records)
  report.noteRound({ round: 1, pages: 2, zeroPages: 0, bytes: 3, durationMs: 4 })
  records.saveDumpEnd({ finalRound: 2, report: report.now(lanes(5)) })

  const killedLate = new SourceRecords(spec, channelTo(spec))
  t.equal(killedLate.finalRound, 2)
  t.same([...killedLate.lazyPages(1).runs()], [...records.lazyPages(1).runs()])
  t.same(
    [1, 2].map((asId) => killedLate.lazyPages(asId).count),
    [6, 2],
    'each address space has its own',
  )
  t.match(new ReportInProgress(spec, 'hybrid', killedLate).now(lanes(6)), {
    rounds: [{ bytes: 3 }],
    bytesOnWire: 6,
  })
})

t.test('nothing is created while the workload stands still', async (t) => {
  const spec = specOf(t)
  const records = new SourceRecords(spec, channelTo(spec))
  t.throws(() => records.savePagemap(1, new Uint8Array(1)), { code: 'INTERNAL' })
})

t.test('killed while it wrote that the dump is complete: it is not', async (t) => {
  const spec = specOf(t)
  writeFileSync(join(spec.stateDir, 'final.json'), '{"finalRound":2,"rep')
  t.equal(new SourceRecords(spec, channelTo(spec)).dumpEnd, null)
})
