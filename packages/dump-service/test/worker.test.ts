import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DEFAULT_SETTINGS, type DumpRequest } from '@pageferry/service'
import type { WorkerSpec } from '@pageferry/service/worker'
import { eventually } from '@pageferry/testing/eventually'
import { kill, startSubject } from '@pageferry/testing/processes'
import t, { type Test } from 'tap'
import { compile, scratchDirectory } from '../../checkpoint/test/fixtures/start.js'
import { SourceWorker } from '../src/worker.js'

type Message = Parameters<ConstructorParameters<typeof SourceWorker>[2]['send']>[0]

/** A successor in this process; resolves with its last message. */
async function takeover(t: Test, pid: number, records: Record<string, unknown>[] = []): Promise<Message> {
  const stateDir = mkdtempSync(join(tmpdir(), 'pageferry-worker-'))
  t.teardown(() => rmSync(stateDir, { recursive: true }))
  const request: DumpRequest = { ...DEFAULT_SETTINGS, pid }
  const spec: WorkerSpec<DumpRequest> = {
    id: '0123456789abcdef',
    role: 'source',
    token: '',
    host: '127.0.0.1',
    stateDir,
    request,
    records,
    createdAt: '',
  }
  const messages: Message[] = []
  let status: number | null = null
  new SourceWorker(spec, true, {
    isRehearsed: false,
    send: (message) => messages.push(message),
    record: async () => {},
    onCancel: () => {},
    exit: (code) => {
      status = code
    },
  })
  await eventually('its end', () => status !== null)
  t.equal(status, 0)
  return messages[messages.length - 1]
}

t.test('the worker before was killed before it had recorded anything', async (t) => {
  const { pid } = await startSubject(['env', '-C', scratchDirectory(), compile('odd'), 'nothing'])
  t.teardown(() => kill(pid))
  t.match(await takeover(t, pid), {
    type: 'failed',
    error: { message: 'the worker on the source ended before the commit' },
    workload: { pid, comm: 'odd', threads: 1, where: 'running' },
  })
})

t.test('the process ended while there was no worker, and another one has its pid', async (t) => {
  const tasks = [{ pid: process.pid, startTime: '1', asId: 1 }]
  const records = [{ comm: 'odd', threads: 2, tasks }]
  const workload = { pid: process.pid, comm: 'odd', threads: 2, where: 'gone' }
  t.match(await takeover(t, process.pid, records), { type: 'failed', workload })
})
