import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { createLogger } from '@pageferry/base'
import { eventually } from '@pageferry/testing/eventually'
import { childrenOf, commandLine, isAlive } from '@pageferry/testing/processes'
import t, { type Test } from 'tap'
import { LIMITS, type Limits } from '../src/server/limits.js'
import { SpareWorkers } from '../src/server/spare-workers.js'
import {
  behave,
  command,
  spawnService,
  startService,
  temporaryDir,
  told,
  untilState,
  workerPath,
} from './fixtures/harness.js'

const request = { pid: 4242, mode: 'hybrid' } as const

/** Spare workers of the service in this process, or in another one. */
function sparesOf(pid = process.pid): number[] {
  return childrenOf(pid).filter((child) => commandLine(child).includes('spare') && isAlive(child))
}

/** It has rehearsed: its directory is gone. */
async function aSpare(stateDir: string, pid = process.pid): Promise<number> {
  const directory = join(stateDir, 'spares')
  return eventually('a spare worker', () => {
    const [spare] = sparesOf(pid)
    const isReady = existsSync(directory) && readdirSync(directory).length === 0
    return isReady ? spare : undefined
  })
}

t.test('a migration gets the spare worker, which is replaced when the migration has ended', async (t) => {
  const stateDir = temporaryDir(t)
  const { client } = await startService(t, 'source', stateDir)
  const spare = await aSpare(stateDir)
  const { id } = await client.createMigration(request)
  await untilState(client, id, 'preparing')
  t.equal(told(stateDir, id)[0]?.pid, spare)
  const { worker } = JSON.parse(readFileSync(join(stateDir, id, 'spec.json'), 'utf8'))
  t.equal(worker.pid, spare, 'a successor knows it')
  await sleep(50)
  t.same(sparesOf(), [spare], 'no other one takes the processors from the migration')

  command(stateDir, id, 'finish')
  await untilState(client, id, 'finished')
  t.not(await aSpare(stateDir), spare)
})

t.test('two migrations, one spare worker; a takeover may use one, too', async (t) => {
  const stateDir = temporaryDir(t)
  behave(t, { WORKER_ON_TAKEOVER: 'wait' })
  const { client } = await startService(t, 'source', stateDir, { spareWorkers: 2 })
  await eventually('two spare workers', () => sparesOf().length === 2)
  const spares = sparesOf()
  const { id } = await client.createMigration(request)
  await untilState(client, id, 'preparing')
  const [first] = told(stateDir, id)
  process.kill(first.pid, 'SIGKILL')
  await untilState(client, id, 'resumed')
  const [, second] = told(stateDir, id)
  t.match(second, { type: 'takeover', orphanIsAlive: false })
  t.same([first.pid, second.pid].sort(), spares.sort())

  const other = await client.createMigration({ ...request, pid: 4243 })
  await untilState(client, other.id, 'preparing')
  t.notOk(spares.includes(told(stateDir, other.id)[0].pid), 'a worker as ever')
})

t.test('a spare worker that still rehearses is used all the same', async (t) => {
  const stateDir = temporaryDir(t)
  behave(t, { WORKER_ON_REHEARSE: 'hang' })
  const { client } = await startService(t, 'source', stateDir)
  const [spare] = await eventually('a spare worker', () => (sparesOf().length > 0 ? sparesOf() : undefined))
  const { id } = await client.createMigration(request)
  await untilState(client, id, 'preparing')
  t.equal(told(stateDir, id)[0]?.pid, spare)
})

t.test('a spare worker is no workload', async (t) => {
  const stateDir = temporaryDir(t)
  const { client } = await startService(t, 'source', stateDir)
  const pid = await aSpare(stateDir)
  await t.rejects(client.createMigration({ ...request, pid }), { code: 'REFUSED' })
})

t.test('kill -9 of a spare worker: there is another one', async (t) => {
  const stateDir = temporaryDir(t)
  const { client } = await startService(t, 'source', stateDir)
  const spare = await aSpare(stateDir)
  process.kill(spare, 'SIGKILL')
  await eventually('its end', () => !isAlive(spare))
  const next = await aSpare(stateDir)
  t.not(next, spare)
  const { id } = await client.createMigration(request)
  await untilState(client, id, 'preparing')
  t.equal(told(stateDir, id)[0]?.pid, next)
})

t.test('kill -9 of a service: its spare worker ends, the next service has its own', async (t) => {
  const stateDir = temporaryDir(t)
  const { process: service } = await spawnService(t, 'source', stateDir)
  const spare = await aSpare(stateDir, service.pid)
  service.kill('SIGKILL')
  await eventually('the end of the spare worker', () => !isAlive(spare))
  mkdirSync(join(stateDir, 'spares', 'left'))
  await startService(t, 'source', stateDir)
  t.notOk(existsSync(join(stateDir, 'spares', 'left')), 'what it left is gone')
  t.ok(await aSpare(stateDir))
})

t.test('a service that is closed takes its spare workers along', async (t) => {
  const { service } = await startService(t, 'destination', temporaryDir(t), { spareWorkers: 3 })
  await eventually('three spare workers', () => sparesOf().length === 3)
  const spares = sparesOf()
  await service.close()
  t.ok(!spares.some(isAlive))
  await sleep(100)
  t.same(sparesOf(), [])
})

t.test('none', async (t) => {
  const stateDir = temporaryDir(t)
  const { client } = await startService(t, 'source', stateDir, { spareWorkers: 0 })
  await sleep(50)
  t.same(sparesOf(), [])
  const { id } = await client.createMigration(request)
  await untilState(client, id, 'preparing')
  command(stateDir, id, 'finish')
  await untilState(client, id, 'finished')
  await sleep(50)
  t.same(sparesOf(), [])
})

interface Complaint {
  message?: string
  error?: { code: string }
}

/** Spare workers without a service, and what they complain about. */
function lone(t: Test, limits: Partial<Limits>) {
  const complaints: Complaint[] = []
  const logger = createLogger('test', 'silent')
  logger.warn = (bindings: object, message?: string) => void complaints.push({ ...bindings, message })
  const spares = new SpareWorkers({
    workerPath,
    directory: join(temporaryDir(t), 'spares'),
    limits: { ...LIMITS, minBackoffMs: 20, maxBackoffMs: 80, exitTimeoutMs: 500, ...limits },
    logger,
    mayStart: () => true,
  })
  t.teardown(() => spares.stop())
  return { spares, complaints }
}

t.test('a host that cannot do it: said once, no loop, until a migration has succeeded', async (t) => {
  behave(t, { WORKER_ON_REHEARSE: 'unfit' })
  const { spares, complaints } = lone(t, {})
  spares.fill()
  await eventually('a complaint', () => complaints.length > 0)
  await eventually('its end', () => sparesOf().length === 0)
  t.match(complaints, [{ error: { code: 'NOT_PERMITTED' } }])
  spares.fill()
  t.same(sparesOf(), [])
  t.equal(spares.take(), undefined)

  behave(t, { WORKER_ON_REHEARSE: 'well' })
  spares.noteHostFit()
  spares.fill()
  t.equal(sparesOf().length, 1)
  t.equal(complaints.length, 1)
})

t.test('spare workers that die are replaced at longer and longer intervals', async (t) => {
  behave(t, { WORKER_ON_REHEARSE: 'die' })
  const { spares, complaints } = lone(t, {})
  spares.fill()
  await eventually('four deaths', () => complaints.length >= 4)
  t.match(
    complaints.slice(0, 4),
    [20, 40, 80, 80].map((pauseMs) => ({ pauseMs, end: 'died of SIGKILL' })),
  )
})

t.test('one that is too large is not kept', async (t) => {
  const { spares, complaints } = lone(t, { spareMemoryBytes: 1024 * 1024 })
  spares.fill()
  await eventually('a complaint', () => complaints.length > 0)
  t.match(complaints, [{ message: /too large/ }])
  await eventually('its end', () => sparesOf().length === 0)
})
