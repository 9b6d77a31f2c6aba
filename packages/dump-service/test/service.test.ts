import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createLogger } from '@pageferry/base'
import { ServiceClient } from '@pageferry/service'
import t from 'tap'
import { startDumpService } from '../src/service.js'

const logger = createLogger('test', 'silent')

t.test('is the source, and takes requests for processes', async (t) => {
  const stateDir = mkdtempSync(join(tmpdir(), 'pageferry-dump-service-'))
  t.teardown(() => rmSync(stateDir, { recursive: true, force: true }))
  const service = await startDumpService({ logger, stateDir, port: 0 })
  t.teardown(() => service.close())
  t.equal(service.host, '127.0.0.1')
  t.match(await new ServiceClient(service.url, 'source').health(), { role: 'source', ok: true })
  const headers = { 'content-type': 'application/json' }
  const answerTo = async (body: object) => {
    const url = `${service.url}/v1/migrations`
    return (await fetch(url, { method: 'POST', headers, body: JSON.stringify(body) })).json()
  }
  t.match(await answerTo({ mode: 'hybrid' }), {
    code: 'BAD_REQUEST',
    message: 'the request is malformed: pid is missing',
  })
  t.match(await answerTo({ pid: 1, compression: 'gzip' }), { code: 'BAD_REQUEST', message: /compression/ })
  t.match(await answerTo({ pid: 1, bulkWindowMiB: 17 }), { code: 'BAD_REQUEST', message: /bulkWindowMiB/ })
  t.match(await answerTo({ pid: 1, bulkWindowMiB: 16, bulkLanes: 3 }), {
    code: 'BAD_REQUEST',
    message: /must be at most 32, not 48/,
  })
})

t.test('listens where nobody else can reach it, unless told otherwise', async (t) => {
  await t.rejects(startDumpService({ logger, stateDir: '/nonexistent', host: '0.0.0.0', port: 0 }), {
    code: 'BAD_REQUEST',
    message: /^refusing to listen on 0.0.0.0: the services have no TLS/,
  })
})
