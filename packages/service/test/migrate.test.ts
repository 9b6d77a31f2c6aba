// test-group: lab
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createLogger } from '@pageferry/base'
import t, { type Test } from 'tap'
import { DumpRequestSchema, type Status } from '../src/api/schemas.js'
import { migrate } from '../src/client/migrate.js'
import { failureOf, reportOf, whereabouts } from '../src/client/outcome.js'
import { createService, type Service } from '../src/server/server.js'

const base = { id: '0123456789abcdef', createdAt: '2026-01-01T00:00:00.000Z' }
type Workload = NonNullable<Status['workload']>

function side(
  role: Status['role'],
  state: string,
  where: Workload['where'],
  more: Partial<Status> = {},
): Status {
  return { ...base, role, state, workload: { pid: 10005, comm: 'python3', threads: 1, where }, ...more }
}

t.test('the last sentence says where the workload is', async (t) => {
  const there = side('destination', 'finished', 'running')
  const exited = { pid: 10005, comm: 'python3', threads: 1, where: 'gone' as const }
  const cases: [Parameters<typeof whereabouts>[0], RegExp][] = [
    [
      { source: side('source', 'finished', 'gone'), destination: there },
      /^Process 10005 \(python3\) runs on the destination\.$/,
    ],
    [{ source: side('source', 'failed', 'running') }, /runs on the source, as before/],
    [
      { source: side('source', 'failed', 'running'), destination: side('destination', 'failed', 'gone') },
      /on the source/,
    ],
    [{ source: side('source', 'serving', 'frozen') }, /frozen on the source and handed over/],
    [{ source: side('source', 'failed', 'gone') }, /ended there during the migration/],
    [
      { destination: { ...there, workload: { ...exited, exit: { kind: 'exited', value: 3 } } } },
      /came to the destination and exited with status 3 there/,
    ],
    [
      { destination: { ...there, workload: { ...exited, exit: { kind: 'signaled', value: 9 } } } },
      /was killed by SIGKILL there/,
    ],
    [
      {
        source: side('source', 'cancelled', 'running'),
        destination: side('destination', 'failed', 'unknown', {
          workload: { pid: 0, comm: '', threads: 0, where: 'unknown' },
        }),
      },
      /^Process 10005 \(python3\) runs on the source/,
    ],
    [{}, /neither side has said/],
  ]
  for (const [sides, sentence] of cases) t.match(whereabouts(sides), sentence)
})

t.test('the reason comes from the side that has it', async (t) => {
  const cancelled = { code: 'CANCELLED' as const, message: 'the migration was cancelled' }
  const missing = { code: 'REFUSED' as const, message: '/opt/x does not exist here' }
  const source = side('source', 'failed', 'running', {
    error: { code: 'REMOTE', message: 'destination: ...' },
  })
  const destination = side('destination', 'failed', 'gone', { error: missing })
  t.match(failureOf({ source, destination }), missing)
  const exited = { code: 'WORKLOAD_EXITED' as const, message: 'it exited' }
  t.match(
    failureOf({ source: { ...source, error: exited }, destination: { ...destination, error: cancelled } }),
    exited,
    'the other side was only told to stop',
  )
  const lost = { code: 'PEER_UNREACHABLE' as const, message: 'connect ECONNREFUSED' }
  t.match(
    failureOf({ source: { ...source, error: cancelled }, destination: { ...destination, error: lost } }),
    cancelled,
    'what the user did comes before what it caused',
  )
  t.match(failureOf({ source: { ...source, error: lost }, destination }), missing)
  t.match(failureOf({ source: { ...source, error: lost } }), lost)
  t.match(failureOf({ source: { ...source, error: undefined } }), { code: 'INTERNAL' })
})

t.test('a report of a migration that failed early is complete, with zeros', async (t) => {
  const source = side('source', 'failed', 'running', { report: { rounds: [], totalMs: 12 } })
  const report = reportOf({
    id: base.id,
    source,
    migrated: false,
    kept: false,
    touched: false,
    unwatched: false,
  })
  t.match(report, {
    id: base.id,
    workload: { pid: 10005 },
    pages: { lazy: 0 },
    blackoutMs: 0,
    totalMs: 12,
    verify: null,
  })
  t.equal(reportOf({ id: base.id, migrated: false, kept: false, touched: false, unwatched: false }), null)
})

async function startService(t: Test, role: Status['role']): Promise<Service> {
  const stateDir = mkdtempSync(join(tmpdir(), 'pageferry-'))
  const service = await createService({
    ...{ role, stateDir, host: '127.0.0.1', port: 0, workerPath: '/nonexistent' },
    requestSchema: DumpRequestSchema,
    logger: createLogger('test', 'silent'),
  })
  t.teardown(async () => {
    await service.close()
    rmSync(stateDir, { recursive: true })
  })
  return service
}

t.test('both services are asked before anything is started', async (t) => {
  const source = await startService(t, 'source')
  const nothing = 'http://127.0.0.1:59999'
  await t.rejects(migrate({ source: source.url, destination: nothing, pid: 1 }), {
    code: 'PEER_UNREACHABLE',
    message: /is the restore-service running there/,
  })
  await t.rejects(migrate({ source: source.url, destination: source.url, pid: 1 }), {
    code: 'BAD_REQUEST',
    message: /is a dump-service, not a restore-service/,
  })
  const { migrations } = (await (await fetch(`${source.url}/v1/migrations`)).json()) as {
    migrations: unknown[]
  }
  t.same(migrations, [])
})

t.test('a service is reached where the caller says, and named as the user named it', async (t) => {
  const source = await startService(t, 'source')
  const [given, gone] = ['http://192.0.2.1:7421', 'http://192.0.2.2:7422']
  const asked: string[] = []
  const reach = async (url: string) => {
    asked.push(url)
    return url === given ? source.url : 'http://127.0.0.1:59999'
  }
  await t.rejects(migrate({ source: given, destination: gone, pid: 1 }, { reach }), {
    code: 'PEER_UNREACHABLE',
    message: `nothing answers at ${gone}: is the service running there?`,
  })
  t.strictSame(asked, [given, gone])
  await t.rejects(migrate({ source: given, destination: given, pid: 1 }, { reach }), {
    message: `${given} is a dump-service, not a restore-service`,
  })
})
