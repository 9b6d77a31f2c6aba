import { existsSync, readFileSync } from 'node:fs'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive, kill, type Subject, startSubject } from '@pageferry/testing/processes'
import t, { type Test } from 'tap'
import { compile, scratchDirectory } from '../../checkpoint/test/fixtures/start.js'
import { OriginalProcess, type OriginalRecord } from '../src/process.js'

const program = compile('odd')
const id = `test-${process.pid}`
const cgroups = (pid: number) => readFileSync(`/proc/${pid}/cgroup`, 'utf8')

async function subjectOf(t: Test): Promise<Subject> {
  const subject = await startSubject(['env', '-C', scratchDirectory(), program, 'nothing'])
  t.teardown(() => kill(subject.pid))
  return subject
}

/** Of proc_pid_status(5): S sleeping, t stopped by a tracer. */
function stateOf(pid: number): string | undefined {
  return /^State:\s+(\w)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
}

t.test('through a migration and back', async (t) => {
  const { pid } = await subjectOf(t)
  const home = cgroups(pid)
  const original = new OriginalProcess(pid, () => t.fail('it did not exit'))
  original.open()
  t.match(original.identity, { comm: 'odd', threads: 1, startTime: /^\d+$/ })
  t.match(original.facts, { nsPid: pid })
  const { path } = original.chooseFreezer(id)
  t.notOk(existsSync(path), 'chosen, not created')
  t.throws(() => original.stopped, { code: 'INTERNAL' })

  let stateAtStopping: string | undefined
  original.stop(() => {
    stateAtStopping = stateOf(pid)
  })
  t.equal(stateAtStopping, 'S', 'it still ran when it was said to stop')
  t.equal(stateOf(pid), 't')
  original.keepFrozen()
  t.match(readFileSync(`/proc/${pid}/status`, 'utf8'), /^TracerPid:\s+0$/m, 'no tracer holds it any more')
  t.ok(existsSync(path))
  original.keepFrozen()
  original.resume()
  original.resume()
  t.notOk(existsSync(path))
  t.equal(cgroups(pid), home)
  await eventually('it runs', () => stateOf(pid) === 'S')
  original.close()
  t.equal(original.memFd, -1)
})

t.test('a successor finds it frozen, and lets it run or kills it', async (t) => {
  for (const end of ['resume', 'kill'] as const) {
    const { pid } = await subjectOf(t)
    const first = new OriginalProcess(pid, () => {})
    first.open()
    const record: OriginalRecord = { ...first.identity, freezer: first.chooseFreezer(`${id}-${end}`) }
    first.stop(() => {})
    first.keepFrozen()
    first.close()

    const successor = new OriginalProcess(pid, () => {})
    t.ok(successor.adopt(record))
    successor.keepFrozen()
    successor[end]()
    successor[end]()
    if (end === 'resume') await eventually('it runs', () => stateOf(pid) === 'S')
    else await eventually('it is gone', () => !isAlive(pid))
    t.notOk(existsSync(record.freezer?.path ?? ''))
    successor.close()
  }
})

t.test('another process that has its pid by now is left alone', async (t) => {
  const { pid } = await subjectOf(t)
  const original = new OriginalProcess(pid, () => {})
  t.notOk(original.adopt({ startTime: '1' }))
  t.equal(original.memFd, -1)
  original.keepFrozen()
  original.resume()
  original.kill()
  t.equal(stateOf(pid), 'S')
})

t.test('its end is noticed', async (t) => {
  const { pid } = await subjectOf(t)
  let exits = 0
  const original = new OriginalProcess(pid, () => exits++)
  original.open()
  kill(pid)
  await eventually('the exit', () => exits > 0)
  t.equal(exits, 1)
  original.close()
  t.notOk(new OriginalProcess(pid, () => {}).adopt({}))
})
