import { once } from 'node:events'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { isAlive } from '@pageferry/testing/processes'
import t from 'tap'
import {
  behave,
  command,
  entries,
  spawnService,
  startService,
  temporaryDir,
  told,
  untilState,
} from './fixtures/harness.js'

const request = { pid: 4242, mode: 'hybrid' } as const

t.test('kill -9 of the service: the next one takes over what is not over', async (t) => {
  const stateDir = temporaryDir(t)
  const before = await spawnService(t, 'source', stateDir)
  const committed = await before.client.createMigration({ pid: 1001, mode: 'hybrid' })
  const open = await before.client.createMigration({ pid: 1002, mode: 'hybrid' })
  const done = await before.client.createMigration({ pid: 1003, mode: 'hybrid' })
  command(stateDir, committed.id, 'commit')
  await untilState(before.client, committed.id, 'committed')
  command(stateDir, done.id, 'finish')
  const report = await untilState(before.client, done.id, 'finished')
  before.process.kill('SIGKILL')
  await once(before.process, 'exit')

  const { client } = await startService(t, 'source', stateDir)
  t.same(await client.get(done.id), report, 'what had ended is as it was')
  t.equal(told(stateDir, done.id).length, 1, 'and left alone')
  t.match(await untilState(client, open.id, 'cancelled'), { error: { message: /^taken over/ } })
  await untilState(client, committed.id, 'resumed')
  await t.rejects(client.createMigration({ pid: 1001, mode: 'hybrid' }), { code: 'CONFLICT' })
  command(stateDir, committed.id, 'finish')
  await untilState(client, committed.id, 'finished')
})

t.test('a worker that outlived its service is dead before its successor begins', async (t) => {
  const stateDir = temporaryDir(t)
  behave(t, { WORKER_ON_ORPHAN: 'stay' })
  const before = await spawnService(t, 'source', stateDir)
  const { id } = await before.client.createMigration(request)
  before.process.kill('SIGKILL')
  await once(before.process, 'exit')
  const [orphan] = told(stateDir, id)
  t.ok(isAlive(orphan.pid), 'the orphan lives')
  const { client } = await startService(t, 'source', stateDir)
  await untilState(client, id, 'cancelled')
  t.ok(!isAlive(orphan.pid))
  t.match(told(stateDir, id)[1], { type: 'takeover', orphanIsAlive: false })
})

t.test('SIGTERM undoes what is not committed and leaves the rest to the next service', async (t) => {
  const stateDir = temporaryDir(t)
  const before = await spawnService(t, 'source', stateDir)
  const committed = await before.client.createMigration({ pid: 1001, mode: 'hybrid' })
  const open = await before.client.createMigration({ pid: 1002, mode: 'hybrid' })
  command(stateDir, committed.id, 'commit')
  await untilState(before.client, committed.id, 'committed')
  const pids = [...told(stateDir, committed.id), ...told(stateDir, open.id)].map(({ pid }) => pid)
  before.process.kill('SIGTERM')
  t.same(await once(before.process, 'exit'), [0, null])
  t.ok(
    pids.every((pid) => !isAlive(pid)),
    'no worker is left',
  )
  t.notOk(entries(stateDir).includes('service.lock'))

  const { client } = await startService(t, 'source', stateDir)
  t.match(await client.get(open.id), { state: 'cancelled', error: { message: /^cancelled/ } })
  t.notOk(told(stateDir, open.id).some(({ type }) => type === 'takeover'))
  t.notOk(told(stateDir, committed.id).some(({ type }) => type === 'cancel'))
  await untilState(client, committed.id, 'resumed')
})

t.test('a worker that does not undo in time is killed when the service stops', async (t) => {
  const stateDir = temporaryDir(t)
  behave(t, { WORKER_ON_CANCEL: 'ignore', WORKER_ON_ORPHAN: 'stay' })
  const { service, client } = await startService(t, 'source', stateDir, {
    undoTimeoutMs: 200,
    exitTimeoutMs: 100,
  })
  const { id } = await client.createMigration(request)
  await service.close()
  t.ok(!isAlive(told(stateDir, id)[0].pid))
  behave(t, { WORKER_ON_CANCEL: 'undo' })
  const next = await startService(t, 'source', stateDir)
  t.match(await untilState(next.client, id, 'cancelled'), { error: { message: /^taken over/ } })
})

t.test('what a crash can leave in the directory', async (t) => {
  const stateDir = temporaryDir(t)
  const inDir = (id: string, files: Record<string, string>) => {
    mkdirSync(join(stateDir, id))
    for (const [name, text] of Object.entries(files)) writeFileSync(join(stateDir, id, name), text)
  }
  inDir('0000000000000001', { 'status.json': '{}', 'spec.json.new': '{"for' })
  inDir('0000000000000002', { 'spec.json': '', journal: 'x' })
  inDir('0000000000000003', { 'spec.json': '{"format":99,"id":"0000000000000003","role":"source"}' })
  const spec = {
    format: 1,
    id: '0000000000000004',
    role: 'source',
    token: 't',
    host: '127.0.0.1',
    stateDir: join(stateDir, '0000000000000004'),
    request,
    records: [],
    createdAt: '2026-01-01T00:00:00.000Z',
    worker: null,
    cancelRequested: false,
    committed: false,
  }
  inDir('0000000000000004', { 'spec.json': JSON.stringify(spec), 'status.json': '{"state":' })
  inDir('unrelated', {})
  const lock = { pid: process.pid, startTicks: '1', bootId: 'an earlier boot' }
  writeFileSync(join(stateDir, 'service.lock'), JSON.stringify(lock))
  const { client } = await startService(t, 'source', stateDir)
  t.match(await untilState(client, '0000000000000004', 'cancelled'), { createdAt: spec.createdAt })
  t.same(
    (await client.list()).map(({ id }) => id),
    ['0000000000000004'],
  )
  const left = ['0000000000000002', '0000000000000003', '0000000000000004', 'service.lock', 'unrelated']
  t.same(entries(stateDir), left, 'only what nobody can have used is removed')
})
