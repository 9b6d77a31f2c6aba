import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { DEFAULT_SETTINGS, MIGRATION_SETTINGS, parseSettings, settingEntries } from '../src/api/settings.js'
import { spawnService, startService, temporaryDir, told, untilState } from './fixtures/harness.js'

t.test('parsing', async (t) => {
  t.strictSame(parseSettings({}), {
    mode: 'hybrid',
    maxRounds: 8,
    maxDowntimeMs: 25,
    verify: 'off',
    maxBandwidthMbit: 0,
    bulkLanes: 1,
    bulkWindowMiB: 4,
    ghostLimitMiB: 64,
    compression: 'auto',
  })
  t.match(parseSettings({ mode: 'postcopy', maxRounds: '3', verify: 'after-resume', pid: 1 }), {
    mode: 'postcopy',
    maxRounds: 3,
    verify: 'after-resume',
  })
  const wrong = {
    mode: 'fast',
    maxRounds: 0,
    maxDowntimeMs: '1.5',
    verify: 'yes',
    maxBandwidthMbit: -1,
    bulkLanes: '',
    bulkWindowMiB: 17,
    compression: 'gzip',
  }
  t.throws(() => parseSettings(wrong), { code: 'BAD_REQUEST', details: { problems: { length: 8 } } })
  t.match(parseSettings({ compression: 'zstd', bulkWindowMiB: 16, bulkLanes: 2 }), { compression: 'zstd' })
  t.throws(() => parseSettings({ bulkWindowMiB: 8, bulkLanes: 5 }), {
    code: 'BAD_REQUEST',
    message: /bulkLanes x bulkWindowMiB must be at most 32, not 40/,
  })
})

t.test('the worker gets complete settings', async (t) => {
  const stateDir = temporaryDir(t)
  const { client } = await startService(t, 'source', stateDir)
  const { id } = await client.createMigration({ pid: 4242, maxRounds: 3 })
  t.strictSame(told(stateDir, id)[0].spec.request, { ...DEFAULT_SETTINGS, pid: 4242, maxRounds: 3 })
})

t.test('a successor gets complete settings of a request that an older version saved', async (t) => {
  const stateDir = temporaryDir(t)
  const before = await spawnService(t, 'source', stateDir)
  const { id } = await before.client.createMigration({ pid: 4242, maxRounds: 3 })
  before.process.kill('SIGKILL')
  await once(before.process, 'exit')
  const path = join(stateDir, id, 'spec.json')
  const saved = JSON.parse(readFileSync(path, 'utf8'))
  writeFileSync(path, JSON.stringify({ ...saved, request: { pid: 4242, mode: 'precopy' } }))
  const { client } = await startService(t, 'source', stateDir)
  await untilState(client, id, 'cancelled')
  const { type, spec } = told(stateDir, id)[1]
  t.equal(type, 'takeover')
  t.strictSame(spec.request, { ...DEFAULT_SETTINGS, pid: 4242, mode: 'precopy' })
})

t.test('every setting says what it means, every number its range, and every default is in it', async (t) => {
  for (const [name, { description, type, minimum, maximum }] of settingEntries(MIGRATION_SETTINGS)) {
    t.match(description, /^[a-z]/, name)
    if (type === 'integer') t.ok(Number.isInteger(minimum) && Number.isInteger(maximum), name)
  }
  t.strictSame(parseSettings({ ...DEFAULT_SETTINGS }), DEFAULT_SETTINGS)
})
