import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { WorkerChannel } from '@pageferry/service/worker'
import t, { type Test } from 'tap'
import { DestinationRecords } from '../src/records.js'
import { emptyReport } from '../src/report.js'

function setUp(t: Test) {
  const stateDir = mkdtempSync(join(tmpdir(), 'pageferry-records-'))
  t.teardown(() => rmSync(stateDir, { recursive: true }))
  const records: Record<string, unknown>[] = []
  /** Like the service: what is recorded stands in the spec of the next worker. */
  const channel: WorkerChannel = {
    isRehearsed: false,
    send: () => {},
    record: async (record) => {
      records.push(record)
    },
    onCancel: () => {},
    exit: () => {},
  }
  return { stateDir, records, worker: () => new DestinationRecords(channel, { stateDir, records }) }
}

t.test('what a successor knows', async (t) => {
  const { records, worker } = setUp(t)
  const first = worker()
  t.same(first.known, {})
  await first.keep({ nrBulkLanes: 2 })
  await first.keep({ asIds: [1], comm: 'odd', threads: 3 })
  first.createFile()
  t.same(
    worker().known,
    { nrBulkLanes: 2, asIds: [1], comm: 'odd', threads: 3 },
    'an empty file says nothing',
  )

  const recorded = records.length
  first.saveRestore({
    pid: 4711,
    threads: 4,
    finalRounds: { 1: 3 },
    report: { ...emptyReport(), drainMs: 5 },
  })
  t.equal(records.length, recorded, 'the service has no part in the freeze')
  t.match(first.known, { pid: 4711, threads: 4, finalRounds: { 1: 3 } })
  t.equal(worker().finalRound(1), 3)
  t.throws(() => worker().finalRound(2), { code: 'INTERNAL' })
  t.match(worker().known, {
    ...{ nrBulkLanes: 2, comm: 'odd', pid: 4711, finalRounds: { 1: 3 }, report: { drainMs: 5 } },
    threads: 4,
  })
})

t.test('killed while it wrote that', async (t) => {
  const { stateDir, worker } = setUp(t)
  writeFileSync(join(stateDir, 'restored.json'), '{"pid":4711,"fin')
  t.same(worker().known, {})
})

t.test('nothing is created in the freeze', async (t) => {
  const { worker } = setUp(t)
  t.throws(() => worker().saveRestore({ pid: 1, threads: 1, finalRounds: { 1: 1 }, report: emptyReport() }), {
    code: 'INTERNAL',
  })
})
