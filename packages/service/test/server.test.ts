import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { request as httpRequest } from 'node:http'
import { join } from 'node:path'
import { createLogger, ERROR_CODES, newToken } from '@pageferry/base'
import { eventually } from '@pageferry/testing/eventually'
import t from 'tap'
import { DumpRequestSchema } from '../src/api/schemas.js'
import { createService } from '../src/server/server.js'
import {
  behave,
  command,
  entries,
  startService,
  temporaryDir,
  told,
  untilState,
  workerPath,
} from './fixtures/harness.js'

const json = { 'content-type': 'application/json' }

t.test('a migration from creation to its end', async (t) => {
  const stateDir = temporaryDir(t)
  const { service, client } = await startService(t, 'source', stateDir)
  const health = await client.health()
  t.match(health, { role: 'source', version: /^\d+\.\d+\.\d+$/, ok: true })
  t.same(await client.list(), [])

  const created = await client.createMigration({ pid: 4242, mode: 'hybrid', maxRounds: 3 })
  t.match(created, { id: /^[0-9a-f]{16}$/, role: 'source', workload: { pid: 4242, comm: 'fixture' } })
  t.match(created.token, /^[A-Za-z0-9_-]{43}$/)
  t.equal(created.dataUrl, 'ws://127.0.0.1:9')
  const { id } = created

  const preparing = await untilState(client, id, 'preparing')
  t.same(preparing.progress, { phase: 'prepare' })
  t.notOk('token' in preparing, 'GET never shows the token')
  t.notOk(JSON.stringify(await client.list()).includes(created.token))
  const [start] = told(stateDir, id)
  t.match(start, { type: 'start', execArgv: [] })
  t.match(start.spec, {
    id,
    role: 'source',
    token: created.token,
    host: '127.0.0.1',
    stateDir: join(stateDir, id),
    request: { pid: 4242, mode: 'hybrid', maxRounds: 3 },
    records: [],
  })

  command(stateDir, id, 'finish')
  const finished = await untilState(client, id, 'finished')
  t.match(finished, { report: { mode: 'hybrid' }, workload: { where: 'running' }, endedAt: /Z$/ })
  t.notOk(readFileSync(join(stateDir, id, 'spec.json'), 'utf8').includes(created.token), 'the secret is gone')

  t.equal(readFileSync(join(stateDir, 'service.lock'), 'utf8').includes(`"pid":${process.pid}`), true)
  await service.close()
  t.notOk(entries(stateDir).includes('service.lock'))
})

t.test('a refusal carries everything that is wrong, and leaves nothing behind', async (t) => {
  const stateDir = temporaryDir(t)
  behave(t, { WORKER_ON_START: 'refuse' })
  const { service, client } = await startService(t, 'source', stateDir)
  const response = await fetch(`${service.url}/v1/migrations`, {
    method: 'POST',
    headers: json,
    body: '{"pid":77,"mode":"precopy"}',
  })
  t.equal(response.status, 409)
  t.same(await response.json(), {
    code: 'REFUSED',
    message: 'the workload does not qualify',
    details: { problems: [{ what: 'fd 3', reason: 'a socket' }] },
  })
  t.same(await client.list(), [])
  await service.close()
  t.same(entries(stateDir), [])
})

t.test('a worker that does not get ready is cancelled', async (t) => {
  const stateDir = temporaryDir(t)
  behave(t, { WORKER_ON_START: 'hang' })
  const { client } = await startService(t, 'source', stateDir, { listeningTimeoutMs: 300 })
  await t.rejects(client.createMigration({ pid: 77, mode: 'hybrid' }), {
    code: 'TIMEOUT',
    message: /^source: .* not ready within 0.3 s and was cancelled$/,
  })
  const [{ id }] = await client.list()
  t.match(await untilState(client, id, 'cancelled'), { error: { code: 'CANCELLED' } })
})

t.test('whoever gives up waiting for the creation cancels it', async (t) => {
  const stateDir = temporaryDir(t)
  behave(t, { WORKER_ON_START: 'hang' })
  const { service, client } = await startService(t, 'source', stateDir)
  const body = '{"pid":77,"mode":"precopy"}'
  const signal = AbortSignal.timeout(500)
  await t.rejects(fetch(`${service.url}/v1/migrations`, { method: 'POST', headers: json, body, signal }))
  for (;;) {
    if ((await client.list()).length === 0) break
  }
  t.pass('it is gone')
})

t.test('malformed requests: one sentence that names every field', async (t) => {
  const { service } = await startService(t, 'source', temporaryDir(t))
  const post = async (body: string, headers: Record<string, string> = json) => {
    const response = await fetch(`${service.url}/v1/migrations`, { method: 'POST', headers, body })
    return { status: response.status, ...((await response.json()) as { code: string; message: string }) }
  }
  t.match(await post('{"pid":"1","mode":"slow","extra":1}'), {
    status: 400,
    code: 'BAD_REQUEST',
    message: /^the request is malformed: .*extra is not known/,
  })
  t.match(await post('{"pid":"1"}'), { message: /pid must be integer/ })
  // The same limits as the worker's: what the API lets through must not end a worker at its start.
  t.match(await post('{"pid":1,"maxRounds":0}'), { status: 400, message: /maxRounds must be >= 1/ })
  t.match(await post('{"pid":1,"mode":"slow"}'), { message: /mode must be one of hybrid, precopy, postcopy/ })
  t.match(await post('{}'), { status: 400, message: /pid is missing/ })
  t.match(await post('{'), { status: 400, code: 'BAD_REQUEST' })
  t.match(await post('pid=1', { 'content-type': 'application/x-www-form-urlencoded' }), {
    status: 415,
    code: 'BAD_REQUEST',
  })
  t.match(await post(`{"pid":1,"mode":"/${'x'.repeat(70_000)}"}`), { status: 413, code: 'BAD_REQUEST' })
})

t.test('what does not exist', async (t) => {
  const { service, client } = await startService(t, 'source', temporaryDir(t))
  for (const [method, path, status, message] of [
    ['GET', '/nowhere', 404, 'dump-service has no GET /nowhere'],
    ['PUT', '/v1/migrations', 404, 'dump-service has no PUT /v1/migrations'],
    ['GET', '/v1/migrations/0123456789abcdef', 404, 'there is no migration 0123456789abcdef here'],
    ['GET', '/v1/migrations/0123456789abcdef/events', 404, 'there is no migration 0123456789abcdef here'],
    ['DELETE', '/v1/migrations/0123456789abcdef', 404, 'there is no migration 0123456789abcdef here'],
    ['GET', '/v1/migrations/..%2f..', 400, /the request is malformed: id must match/],
  ] as const) {
    const response = await fetch(service.url + path, { method })
    const body = (await response.json()) as { code: string; message: string; details: object }
    t.equal(response.status, status, path)
    t.match(body.message, message)
    t.ok(Object.hasOwn(ERROR_CODES, body.code))
    t.type(body.details, 'object')
  }
  await t.rejects(client.get('0123456789abcdef'), { code: 'NOT_FOUND', role: 'source' })
})

t.test('a web page that resolves to loopback is turned away', async (t) => {
  const { service } = await startService(t, 'source', temporaryDir(t))
  const status = (host: string) =>
    new Promise((resolve) => {
      const headers = { host }
      httpRequest({ host: service.host, port: service.port, path: '/healthz', headers }, (response) => {
        response.resume()
        resolve(response.statusCode)
      }).end()
    })
  t.equal(await status('evil.example:80'), 400)
  t.equal(await status(`localhost:${service.port}`), 200)
  t.equal(await status('127.0.0.1'), 200)
  t.equal(await status('[::1]:1'), 200)
})

t.test('limits: one migration per process, so many per service', async (t) => {
  const stateDir = temporaryDir(t)
  const { client } = await startService(t, 'source', stateDir, { maxMigrations: 2 })
  const first = await client.createMigration({ pid: 101, mode: 'hybrid' })
  await t.rejects(client.createMigration({ pid: 101, mode: 'hybrid' }), {
    code: 'CONFLICT',
    message: `source: process 101 is already being migrated, as ${first.id}`,
    details: { pid: 101, id: first.id },
  })
  await t.rejects(client.createMigration({ pid: process.pid, mode: 'hybrid' }), {
    code: 'REFUSED',
    message: /belongs to the dump-service itself/,
  })
  await client.createMigration({ pid: 102, mode: 'hybrid' })
  await t.rejects(client.createMigration({ pid: 103, mode: 'hybrid' }), {
    code: 'REFUSED',
    message: /runs 2 migrations already, which is its limit/,
  })
  command(stateDir, first.id, 'fail')
  t.match(await untilState(client, first.id, 'failed'), {
    error: { code: 'VERIFY_FAILED', details: { page: 7 } },
  })
  const again = await client.createMigration({ pid: 101, mode: 'hybrid' })
  t.not(again.id, first.id, 'a process whose migration failed can be tried again')
})

t.test('the destination', async (t) => {
  const stateDir = temporaryDir(t)
  const { client } = await startService(t, 'destination', stateDir)
  const request = { id: '00112233aabbccdd', token: newToken(), source: 'ws://10.77.0.1:5000' }
  const status = await client.createMigration(request)
  t.match(status, { id: request.id, role: 'destination', state: 'starting', workload: null })
  await untilState(client, request.id, 'preparing')
  t.match(told(stateDir, request.id)[0].spec, {
    token: request.token,
    request: { source: 'ws://10.77.0.1:5000' },
  })
  await t.rejects(client.createMigration(request), { code: 'CONFLICT', message: /already known here/ })
  await t.rejects(client.createMigration({ ...request, id: 'x', source: 'http://a' }), {
    code: 'BAD_REQUEST',
    message: /^destination: the request is malformed: .*id.*source/,
  })
})

t.test('ended migrations: the newest are kept, and those that are in use', async (t) => {
  const stateDir = temporaryDir(t)
  const { service, client } = await startService(t, 'source', stateDir, { keptMigrations: 2 })
  const ids: string[] = []
  for (const pid of [11, 12, 13, 14]) {
    const { id } = await client.createMigration({ pid, mode: 'hybrid' })
    ids.push(id)
    command(stateDir, id, 'finish')
    await untilState(client, id, 'finished')
  }
  t.same(
    (await client.list()).map(({ id }) => id),
    ids.slice(2),
  )
  await service.close()
  t.same(entries(stateDir), ids.slice(2).sort())

  const options = {
    role: 'source',
    workerPath,
    stateDir,
    host: '127.0.0.1',
    port: 0,
    logger: createLogger('test', 'silent'),
    requestSchema: DumpRequestSchema,
    limits: { keptMigrations: 0 },
  } as const
  const inUse = (directory: string) => directory.endsWith(ids[2])
  const later = await createService({ ...options, inUse, workloadExit: () => ({ kind: 'exited', value: 3 }) })
  t.same(entries(stateDir), [ids[2], 'service.lock'].sort())
  const response = await fetch(`${later.url}/v1/migrations/${ids[2]}`)
  t.match(await response.json(), { workload: { where: 'gone', exit: { kind: 'exited', value: 3 } } })
  await later.close()
})

t.test('a worker cannot end its migration with a state or code of its own', async (t) => {
  const stateDir = temporaryDir(t)
  const { client } = await startService(t, 'source', stateDir)
  const { id } = await client.createMigration({ pid: 5, mode: 'hybrid' })
  await untilState(client, id, 'preparing')
  command(stateDir, id, 'steal')
  await eventually('the command is taken', () => !existsSync(join(stateDir, id, 'command')))
  command(stateDir, id, 'badCode')
  t.match(await untilState(client, id, 'failed'), { error: { code: 'INTERNAL', message: 'odd' } })
})

t.test('a service that cannot start says why, and holds nothing', async (t) => {
  const stateDir = temporaryDir(t)
  const { service } = await startService(t, 'source', stateDir)
  const options = {
    role: 'source',
    workerPath,
    stateDir,
    host: '127.0.0.1',
    port: 0,
    logger: createLogger('test', 'silent'),
    requestSchema: DumpRequestSchema,
  } as const
  await t.rejects(createService(options), {
    code: 'CONFLICT',
    message: /belongs to a running service \(pid \d+\)/,
  })
  await t.rejects(createService({ ...options, host: '0.0.0.0' }), { code: 'BAD_REQUEST' })
  const other = temporaryDir(t)
  await t.rejects(createService({ ...options, stateDir: other, port: service.port }), {
    code: 'BAD_REQUEST',
    message: /^dump-service cannot listen on 127.0.0.1:\d+: something listens there already$/,
  })
  t.same(entries(other), [])
  await t.rejects(createService({ ...options, stateDir: other, host: '10.77.254.254' }), {
    message: /this machine has no such address/,
  })
  writeFileSync(join(other, 'file'), '')
  await t.rejects(createService({ ...options, stateDir: join(other, 'file') }), {
    code: 'NOT_PERMITTED',
    message: /^the state directory .* cannot be used \(E[A-Z]+\): run the service as root or choose another/,
  })
})
