import { PassThrough } from 'node:stream'
import { PageferryError } from '@pageferry/base'
import type { Status } from '@pageferry/service'
import t from 'tap'
import { conclude } from '../src/commands/migrate.js'
import { failureStatus } from '../src/errors.js'

t.test('3 for a refusal, 4 once the workload was touched', async (t) => {
  const notPermitted = new PageferryError('NOT_PERMITTED', 'mount failed with EPERM')
  t.equal(failureStatus(notPermitted, false), 3)
  t.equal(failureStatus(notPermitted, true), 4)
  t.equal(failureStatus(new PageferryError('TIMEOUT', 'too long'), false), 4)
  t.equal(failureStatus(new PageferryError('UNAUTHORIZED', 'a token'), false), 4, 'it had begun')
})

t.test('5 when it runs there and was not proven, with a report and where it is', async (t) => {
  const of = (role: 'source' | 'destination', where: 'frozen' | 'running', message: string): Status => ({
    ...{ id: '0123456789abcdef', role, state: 'failed', createdAt: '' },
    workload: { pid: 7, comm: 'sleep', threads: 1, where },
    error: { code: 'VERIFY_FAILED', message },
    report: { outcome: 'kept' },
  })
  const source = of('source', 'frozen', '1 page differs; the original is kept')
  const destination = of('destination', 'running', '1 page differs')
  const out = new PassThrough()
  const said: string[] = []
  const write = process.stderr.write
  process.stderr.write = (text) => said.push(String(text)) > 0
  try {
    const result = { id: source.id, source, destination, migrated: false, kept: true, touched: true }
    t.throws(() => conclude({ ...result, unwatched: false }, undefined, out), { message: 'exit status 5' })
  } finally {
    process.stderr.write = write
  }
  t.match(
    String(out.read()),
    /NOT PROVEN: it runs on the destination, the original is kept frozen on the source/,
  )
  t.match(said.join(''), /1 page differs; the original is kept\nProcess 7 \(sleep\) runs on the destination/)
})
