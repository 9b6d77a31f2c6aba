import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive } from '@pageferry/testing/processes'
import t from 'tap'
import { behave, command, startService, temporaryDir, told, untilState } from './fixtures/harness.js'

const request = { pid: 4242, mode: 'hybrid' } as const

t.test('kill -9 of a worker before the commit: its successor undoes', async (t) => {
  const stateDir = temporaryDir(t)
  const { client } = await startService(t, 'source', stateDir)
  const { id, token } = await client.createMigration(request)
  await untilState(client, id, 'preparing')
  const [first] = told(stateDir, id)
  process.kill(first.pid, 'SIGKILL')
  t.match(await untilState(client, id, 'cancelled'), { error: { message: /^taken over: / } })
  const [, second] = told(stateDir, id)
  t.match(second, { type: 'takeover', orphanIsAlive: false, spec: { id, token, request } })
  t.not(second.pid, first.pid)
})

t.test('kill -9 of a worker after the commit, again and again: the migration goes on', async (t) => {
  const stateDir = temporaryDir(t)
  const { client } = await startService(t, 'source', stateDir)
  const { id } = await client.createMigration(request)
  command(stateDir, id, 'commit')
  t.match(await untilState(client, id, 'committed'), { workload: { where: 'frozen' } })
  for (let deaths = 1; deaths <= 4; deaths++) {
    const workers = told(stateDir, id)
    process.kill(workers[workers.length - 1].pid, 'SIGKILL')
    await eventually('a successor', () => told(stateDir, id).length === deaths + 1)
  }
  await untilState(client, id, 'resumed')
  command(stateDir, id, 'finish')
  t.match(await untilState(client, id, 'finished'), { report: { mode: 'hybrid' } })
})

t.test('what a worker recorded last reaches its successor', async (t) => {
  const stateDir = temporaryDir(t)
  behave(t, { WORKER_ON_TAKEOVER: 'wait' })
  const { client } = await startService(t, 'source', stateDir)
  const { id } = await client.createMigration(request)
  await untilState(client, id, 'preparing')
  command(stateDir, id, 'record')
  await eventually('the acknowledgement', () => told(stateDir, id).some((line) => line.seq === 7))
  t.match(JSON.parse(readFileSync(join(stateDir, id, 'spec.json'), 'utf8')), {
    records: [{ scratch: '0x10000' }],
  })
  process.kill(told(stateDir, id)[0].pid, 'SIGKILL')
  await untilState(client, id, 'resumed')
  const takeover = told(stateDir, id).find(({ type }) => type === 'takeover')
  t.same(takeover?.spec.records, [{ scratch: '0x10000' }])
})

t.test('a worker that dies before it listens: the creation fails when everything is undone', async (t) => {
  const stateDir = temporaryDir(t)
  behave(t, { WORKER_ON_START: 'die' })
  const { client } = await startService(t, 'source', stateDir)
  await t.rejects(client.createMigration(request), { code: 'CANCELLED', message: /taken over/ })
})

t.test('cancel', async (t) => {
  const stateDir = temporaryDir(t)
  const { client } = await startService(t, 'source', stateDir)
  const { id } = await client.createMigration(request)
  t.equal((await client.cancel(id)).id, id)
  t.match(await untilState(client, id, 'cancelled'), { error: { code: 'CANCELLED' } })
  t.match(await client.cancel(id), { state: 'cancelled' }, 'again: no error')
  t.equal(told(stateDir, id).filter(({ type }) => type === 'cancel').length, 1)

  const late = await client.createMigration(request)
  command(stateDir, late.id, 'commit')
  await untilState(client, late.id, 'committed')
  await t.rejects(client.cancel(late.id), {
    code: 'CONFLICT',
    message: /past its commit and can only go forward/,
  })
  command(stateDir, late.id, 'finish')
  await untilState(client, late.id, 'finished')
  await t.rejects(client.cancel(late.id), { code: 'CONFLICT', message: /has finished/ })
})

t.test('a cancellation survives the worker that was told', async (t) => {
  const stateDir = temporaryDir(t)
  behave(t, { WORKER_ON_CANCEL: 'ignore', WORKER_ON_TAKEOVER: 'wait' })
  const { client } = await startService(t, 'source', stateDir)
  const { id } = await client.createMigration(request)
  await client.cancel(id)
  await eventually('the cancellation', () => told(stateDir, id).some(({ type }) => type === 'cancel'))
  behave(t, { WORKER_ON_CANCEL: 'undo' })
  process.kill(told(stateDir, id)[0].pid, 'SIGKILL')
  await untilState(client, id, 'cancelled')
})

t.test('a worker may stay a little after its last message', async (t) => {
  const stateDir = temporaryDir(t)
  const { client } = await startService(t, 'source', stateDir, { lingerMs: 300 })
  const { id } = await client.createMigration(request)
  command(stateDir, id, 'finishAndStay')
  await untilState(client, id, 'finished')
  const [{ pid }] = told(stateDir, id)
  t.ok(isAlive(pid), 'it may still answer its peer')
  await eventually('its end', () => !isAlive(pid))
  t.equal(told(stateDir, id).length, 1, 'and it has no successor')
})
