import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createLogger } from '@pageferry/base'
import { ServiceClient } from '@pageferry/service'
import t from 'tap'
import { startRestoreService } from '../src/service.js'

const logger = createLogger('test', 'silent')

/** An ended migration as the service itself would have left it. */
function leaveFinished(stateDir: string, id: string, createdAt: string): string {
  const directory = join(stateDir, id)
  mkdirSync(directory)
  const common = { id, role: 'destination', createdAt }
  const spec = {
    ...common,
    format: 1,
    token: '',
    stateDir: directory,
    records: [],
    worker: null,
    committed: true,
  }
  const workload = { pid: 4242, comm: 'python3', threads: 1, where: 'running' }
  writeFileSync(join(directory, 'spec.json'), JSON.stringify(spec))
  writeFileSync(
    join(directory, 'status.json'),
    JSON.stringify({ ...common, state: 'finished', workload, endedAt: createdAt }),
  )
  return directory
}

t.test('tells how a workload ended after its migration', async (t) => {
  const stateDir = mkdtempSync(join(tmpdir(), 'pageferry-restore-service-'))
  t.teardown(() => rmSync(stateDir, { recursive: true, force: true }))
  const id = '00000000000000aa'
  const directory = leaveFinished(stateDir, id, '2026-01-01T00:00:00.000Z')
  const service = await startRestoreService({ logger, stateDir, port: 0 })
  t.teardown(() => service.close())
  const client = new ServiceClient(service.url, 'destination')
  t.match(await client.health(), { role: 'destination' })

  t.match((await client.get(id)).workload, { where: 'running', exit: undefined })
  writeFileSync(join(directory, 'exit-status'), 'signaled 9\n')
  t.match((await client.get(id)).workload, { where: 'gone', exit: { kind: 'signaled', value: 9 } })
  rmSync(join(directory, 'exit-status'))
  t.match((await client.get(id)).workload, { where: 'gone' }, 'once known, kept')
})

t.test('an ended migration is kept for as long as its keeper lives', async (t) => {
  const stateDir = mkdtempSync(join(tmpdir(), 'pageferry-restore-service-'))
  t.teardown(() => rmSync(stateDir, { recursive: true, force: true }))
  const oldest = leaveFinished(stateDir, '0000000000000000', '2025-01-01T00:00:00.000Z')
  writeFileSync(join(oldest, 'keeper.sock'), '')
  const second = leaveFinished(stateDir, '0000000000000001', '2025-01-02T00:00:00.000Z')
  for (let i = 2; i < 102; i++) {
    leaveFinished(stateDir, i.toString(16).padStart(16, '0'), '2026-01-01T00:00:00.000Z')
  }
  const service = await startRestoreService({ logger, stateDir, port: 0 })
  await service.close()
  t.ok(existsSync(oldest))
  t.notOk(existsSync(second), 'the oldest that nothing needs')
})
