import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { memory } from '@pageferry/kernel'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive, kill } from '@pageferry/testing/processes'
import t from 'tap'
import { readStatus } from '../src/proc/status.js'
import { readTids } from '../src/proc/tasks.js'
import { StoppedProcess } from '../src/remote/stopped-process.js'
import { start } from './fixtures/start.js'

const ownFds = () => readdirSync('/proc/self/fd').length

t.test('threads that are born and die while they are being stopped', { timeout: 60_000 }, async (t) => {
  const subject = await start('births')
  const { pid } = subject
  t.teardown(() => kill(pid))
  const counters = BigInt(subject.facts().counters)
  const count = () => new BigUint64Array(memory.readBytes(pid, counters, 64).slice().buffer)
  await eventually('threads are born', () => count().every((each) => each > 10n))
  const fdsBefore = ownFds()
  const seen = new Set<number>()
  for (let i = 0; i < 60; i++) {
    const stopped = StoppedProcess.stop(pid, 'all')
    try {
      const tids = stopped.threads.map(({ tid }) => tid)
      t.same(readTids(pid).sort(), [...tids].sort(), 'every thread is in the list')
      for (const tid of tids) seen.add(tid)
      const before = count()
      if (i % 10 === 0) {
        t.ok(
          readTids(pid).every((tid) => readStatus(pid, tid).tracerPid === process.pid),
          'every thread is traced',
        )
        await sleep(5)
      }
      for (const thread of stopped.threads) {
        if (thread.tryCall('close', 0x7fff_ffff) !== -9n) t.fail(`no call in thread ${thread.tid}`)
      }
      t.same(count(), before, 'nothing moves')
    } finally {
      stopped.resume()
    }
    const after = count()
    await eventually('it goes on', () => count().every((each, n) => each > after[n]))
  }
  t.ok(isAlive(pid), 'no thread missed anything')
  t.ok(seen.size > 30, `${seen.size} different threads were seen`)
  t.equal(ownFds(), fdsBefore, 'no descriptor leaks')
  t.equal(readStatus(pid).tracerPid, 0)
})

t.test('one thread is enough for a call', async (t) => {
  const subject = await start('births')
  t.teardown(() => kill(subject.pid))
  const stopped = StoppedProcess.stop(subject.pid, 'one')
  t.equal(stopped.threads.length, 1)
  t.equal(stopped.leader.tid, subject.pid)
  t.ok(stopped.leader.call('brk', 0) > 0n)
  stopped.resume()
  t.ok(isAlive(subject.pid))
})

t.test('each thread puts back its own registers', async (t) => {
  const subject = await start('registers')
  const { pid } = subject
  t.teardown(() => kill(pid))
  await eventually('its threads run', () => readTids(pid).length === 7)
  for (let i = 0; i < 10; i++) {
    const stopped = StoppedProcess.stop(pid, 'all')
    stopped.mapScratch()
    for (let turn = 0; turn < 3; turn++) {
      for (const thread of stopped.threads) {
        thread.call('sigaltstack', 0, stopped.scratch)
        stopped.leader.call('brk', 0)
      }
    }
    stopped.resume()
    await sleep(20)
  }
  await sleep(300)
  t.ok(isAlive(pid), subject.output())
  t.notMatch(subject.output(), /failed/)
})

t.test('failing leaves nothing stopped', async (t) => {
  const fdsBefore = ownFds()
  t.throws(() => StoppedProcess.stop(0x3f_ffff, 'all'), { code: 'ESRCH' })
  const subject = await start('waiter', 'pause')
  t.teardown(() => kill(subject.pid))
  const first = StoppedProcess.stop(subject.pid, 'all')
  try {
    t.throws(() => StoppedProcess.stop(subject.pid, 'all'), { code: 'NOT_PERMITTED' })
  } finally {
    first.resume()
  }
  t.equal(ownFds(), fdsBefore, 'no descriptor leaks')
  const again = StoppedProcess.stop(subject.pid, 'all')
  again.resume()
  t.equal(readFileSync(`/proc/${subject.pid}/status`, 'utf8').includes('TracerPid:\t0'), true)
  // Without a tracer a process that was left stopped would not run into its signal.
  process.kill(subject.pid, 'SIGUSR1')
  await eventually('it runs', () => subject.output().includes('handled'))
})
