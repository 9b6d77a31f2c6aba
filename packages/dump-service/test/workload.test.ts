import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { cgroupHold, readMaps } from '@pageferry/checkpoint'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive, kill, type Subject, startSubject } from '@pageferry/testing/processes'
import t, { type Test } from 'tap'
import { compile, scratchDirectory } from '../../checkpoint/test/fixtures/start.js'
import * as holds from '../src/holds.js'
import { Workload } from '../src/workload.js'

const program = compile('odd')
const id = `test-${process.pid}`
const cgroups = (pid: number) => readFileSync(`/proc/${pid}/cgroup`, 'utf8')

async function subjectOf(t: Test, kind = 'nothing'): Promise<Subject> {
  const subject = await startSubject(['env', '-C', scratchDirectory(), program, kind])
  t.teardown(() => kill(subject.pid))
  return subject
}

function stateDirOf(t: Test): string {
  const dir = mkdtempSync(join(tmpdir(), 'pageferry-holds-'))
  t.teardown(() => rmSync(dir, { recursive: true }))
  return dir
}

/** As after kill -9 of a worker: its file is there, and it has undone nothing. */
const openHolds = (stateDir: string) => holds.openHolds(stateDir)

/** Of proc_pid_status(5): S sleeping, t stopped by a tracer. */
function stateOf(pid: number): string | undefined {
  return /^State:\s+(\w)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
}

t.test('a workload that must not be moved says so itself, before anything is done to it', async (t) => {
  const { pid, output } = await subjectOf(t, 'landlock-user')
  if (output().startsWith('unsupported')) return t.pass('Landlock', { skip: `kernel: ${output().trim()}` })
  const workload = new Workload(pid, openHolds(stateDirOf(t)), { ghostBytes: 0, onExit: () => {} })
  workload.open(id)
  await t.rejects(workload.probe(), { code: 'REFUSED', message: /confined by a Landlock domain/ })
  // It needs a processor for a moment, to go back into its pause().
  await eventually('it runs', () => stateOf(pid) === 'S')
  workload.resume()
  workload.close()
  const ordinary = await subjectOf(t)
  const other = new Workload(ordinary.pid, openHolds(stateDirOf(t)), { ghostBytes: 0, onExit: () => {} })
  other.open(id)
  await other.probe()
  await eventually('it runs', () => stateOf(ordinary.pid) === 'S')
  other.resume()
  other.close()
})

t.test('through a migration and back', async (t) => {
  const { pid } = await subjectOf(t)
  const home = cgroups(pid)
  const list = openHolds(stateDirOf(t))
  const workload = new Workload(pid, list, { ghostBytes: 0, onExit: () => t.fail('it did not exit') })
  workload.open(id)
  t.match(workload.record, { comm: 'odd', threads: 1, tasks: [{ pid, startTime: /^\d+$/, asId: 1 }] })
  t.match(workload.root.facts, { nsPid: pid })
  const path = list.facts(cgroupHold)?.path ?? ''
  t.match(path, /pageferry-test/)
  t.notOk(existsSync(path), 'chosen, not created')
  t.throws(() => workload.root.stopped, { code: 'INTERNAL' })

  let stateAtStopping: string | undefined
  const threads = workload.stop(() => {
    stateAtStopping = stateOf(pid)
  })
  t.equal(threads, 1)
  t.equal(stateAtStopping, 'S', 'it still ran when it was said to stop')
  t.equal(stateOf(pid), 't')
  workload.keepFrozen()
  t.match(readFileSync(`/proc/${pid}/status`, 'utf8'), /^TracerPid:\s+0$/m, 'no tracer holds it any more')
  t.ok(existsSync(path))
  workload.keepFrozen()
  workload.resume()
  workload.resume()
  t.notOk(existsSync(path))
  t.equal(cgroups(pid), home)
  await eventually('it runs', () => stateOf(pid) === 'S')
  workload.close()
  t.equal(workload.space.memFd, -1)
})

t.test('a program that begins anew leaves its memory behind', async (t) => {
  const { pid } = await startSubject([
    'sh',
    '-c',
    'trap "exec sleep 60" USR1; echo; while :; do sleep 0.01; done',
  ])
  t.teardown(() => kill(pid))
  const workload = new Workload(pid, openHolds(stateDirOf(t)), {
    ghostBytes: 0,
    onExit: () => t.fail('it did not exit'),
  })
  const isSame = () => t.doesNotThrow(() => workload.space.requireSameProgram())
  // Before it is open, and when it is closed: the error that is being explained must not be replaced by ours.
  isSame()
  workload.space.open()
  isSame()
  process.kill(pid, 'SIGUSR1')
  const comm = () => readFileSync(`/proc/${pid}/comm`, 'utf8')
  await eventually('it is another program', () => comm() === 'sleep\n')
  t.throws(() => workload.space.requireSameProgram(), { code: 'WORKLOAD_CHANGED', message: /execve/ })
  workload.close()
  isSame()
})

t.test('back from every step', async (t) => {
  const { pid } = await subjectOf(t)
  const home = cgroups(pid)
  const before = readMaps(pid)
  for (const steps of [1, 2, 3, 4, 5, 6]) {
    const list = openHolds(stateDirOf(t))
    const workload = new Workload(pid, list, { ghostBytes: 0, onExit: () => t.fail('it did not exit') })
    const all = [
      () => workload.open(`${id}-${steps}`),
      () => workload.space.track(),
      () => workload.space.chooseScratch(),
      () => workload.stop(() => {}),
      () => workload.space.mapScratch(),
      () => workload.space.unmapScratch(),
      () => workload.keepFrozen(),
    ]
    for (const step of all.slice(0, steps + 1)) step()
    if (steps === 4) t.not(readMaps(pid).length, before.length, 'there is a scratch area')
    workload.resume()
    await eventually('it runs', () => stateOf(pid) === 'S')
    t.same(readMaps(pid), before, `after ${steps} steps`)
    t.equal(cgroups(pid), home)
    workload.close()
    list.close()
  }
})

t.test('a successor finds it frozen, and lets it run or kills it', async (t) => {
  for (const end of ['resume', 'kill'] as const) {
    const { pid } = await subjectOf(t)
    const stateDir = stateDirOf(t)
    const first = new Workload(pid, openHolds(stateDir), { ghostBytes: 0, onExit: () => {} })
    first.open(`${id}-${end}`)
    first.stop(() => {})
    first.keepFrozen()
    const { record } = first
    first.close()

    const list = openHolds(stateDir)
    const successor = new Workload(pid, list, { ghostBytes: 0, onExit: () => {} })
    t.ok(successor.adopt(record))
    const path = list.facts(cgroupHold)?.path ?? ''
    t.ok(existsSync(path))
    successor.keepFrozen()
    successor[end]()
    successor[end]()
    if (end === 'resume') await eventually('it runs', () => stateOf(pid) === 'S')
    else await eventually('it is gone', () => !isAlive(pid))
    t.notOk(existsSync(path))
    successor.close()
    t.equal(openHolds(stateDir).facts(cgroupHold), undefined, 'a third worker has nothing to undo')
  }
})

t.test('another process that has its pid by now is left alone', async (t) => {
  const { pid } = await subjectOf(t)
  const stateDir = stateDirOf(t)
  const list = openHolds(stateDir)
  const { start, nrPages } = readMaps(pid)[0]
  const scratch = { pid, startTime: '1', page: start, nrPages }
  list.announce(holds.stop, scratch)
  list.announce(holds.scratch, scratch)
  const workload = new Workload(pid, openHolds(stateDir), { ghostBytes: 0, onExit: () => {} })
  t.notOk(workload.adopt({ tasks: [{ pid, startTime: '1', asId: 1 }] }))
  t.equal(workload.space.memFd, -1)
  workload.keepFrozen()
  workload.resume()
  workload.kill()
  t.equal(stateOf(pid), 'S')
})

t.test('killed while the freezer holds it: its cgroup does not stay', async (t) => {
  const { pid } = await subjectOf(t)
  const list = openHolds(stateDirOf(t))
  let exits = 0
  const workload = new Workload(pid, list, { ghostBytes: 0, onExit: () => exits++ })
  workload.open(`${id}-killed`)
  workload.stop(() => {})
  workload.keepFrozen()
  const path = list.facts(cgroupHold)?.path ?? ''
  t.ok(existsSync(path))
  kill(pid)
  list.releaseAll()
  t.notOk(existsSync(path))
  await eventually('the exit', () => exits > 0)
  workload.close()
})

t.test('its end is noticed', async (t) => {
  const { pid } = await subjectOf(t)
  let exits = 0
  const workload = new Workload(pid, openHolds(stateDirOf(t)), { ghostBytes: 0, onExit: () => exits++ })
  workload.open(id)
  kill(pid)
  await eventually('the exit', () => exits > 0)
  t.equal(exits, 1)
  workload.close()
  t.notOk(new Workload(pid, openHolds(stateDirOf(t)), { ghostBytes: 0, onExit: () => {} }).adopt({}))
})
