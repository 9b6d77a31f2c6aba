import { existsSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { memory } from '@pageferry/kernel'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive, kill, type Subject } from '@pageferry/testing/processes'
import t from 'tap'
import { Freezer } from '../src/freezer.js'
import { StoppedProcess } from '../src/remote/stopped-process.js'
import { start } from './fixtures/start.js'

const mounts = readFileSync('/proc/self/mounts', 'utf8')
  .split('\n')
  .map((line) => line.split(' '))
const mounted = {
  1: mounts.some((fields) => fields[2] === 'cgroup' && fields[3].split(',').includes('freezer')),
  2: mounts.some((fields) => fields[2] === 'cgroup2'),
}
const id = (name: string) => `test-${process.pid}-${name}`
const cgroups = (pid: number) => readFileSync(`/proc/${pid}/cgroup`, 'utf8')

function counter(subject: Subject): () => bigint {
  const address = BigInt(subject.facts().rounds)
  return () => Buffer.from(memory.readBytes(subject.pid, address, 8)).readBigInt64LE(0)
}

for (const version of [1, 2] as const) {
  const skip = mounted[version] ? false : `kernel: no cgroup v${version} freezer is mounted`

  t.test(`v${version}: holds a process still and lets it go`, { skip }, async (t) => {
    const subject = await start('registers')
    const { pid } = subject
    const count = counter(subject)
    await eventually('it counts', () => count() > 0n)
    const before = cgroups(pid)
    const freezer = Freezer.forProcess(pid, id('hold'), version)
    t.teardown(() => {
      freezer.dissolve()
      kill(pid)
    })
    t.equal(freezer.record.version, version)
    t.notOk(existsSync(freezer.record.path), 'nothing is made yet')
    freezer.create()
    freezer.create()
    freezer.add(pid)
    t.not(cgroups(pid), before)
    t.notOk(freezer.isFrozen())
    const running = count()
    await eventually('it runs in there', () => count() > running)

    freezer.freeze()
    t.ok(freezer.isFrozen())
    const frozen = count()
    await sleep(30)
    t.equal(count(), frozen)
    process.kill(pid, 'SIGCONT')
    await sleep(10)
    t.equal(count(), frozen, 'SIGCONT does not wake it')

    const another = new Freezer(freezer.record)
    another.thaw()
    another.thaw()
    await eventually('a successor thaws it', () => count() > frozen)

    freezer.beginFreezing()
    await eventually('it stands still in a moment', () => freezer.isFrozen())
    const still = count()
    freezer.thaw()
    await eventually('and goes on', () => count() > still)
    new Freezer({ ...freezer.record, path: `${freezer.record.path}-gone` }).beginFreezing()
    another.dissolve()
    t.notOk(existsSync(freezer.record.path))
    t.equal(cgroups(pid), before, 'it is where it came from')
    freezer.dissolve()
    freezer.thaw()
    t.ok(isAlive(pid))
  })

  t.test(`v${version}: takes over from the tracer`, { skip }, async (t) => {
    const subject = await start('registers')
    const { pid } = subject
    const count = counter(subject)
    await eventually('it counts', () => count() > 0n)
    const freezer = Freezer.forProcess(pid, id('take'), version)
    t.teardown(() => {
      freezer.dissolve()
      kill(pid)
    })
    freezer.create()
    const stopped = StoppedProcess.stop(pid, 'all')
    stopped.leader.call('brk', 0)
    stopped.leave()
    freezer.add(pid)
    freezer.freeze()
    t.ok(freezer.isFrozen(), 'stopped tracees count as held')
    const held = count()
    stopped.detach()
    await sleep(30)
    t.equal(count(), held, 'and stay so')
    t.ok(freezer.isFrozen())
    freezer.thaw()
    await eventually('it goes on', () => count() > held)
    await sleep(300)
    t.ok(isAlive(pid), subject.output())
  })

  t.test(`v${version}: dissolving a frozen cgroup brings everything home alive`, { skip }, async (t) => {
    const subject = await start('waiter', 'user')
    const freezer = Freezer.forProcess(subject.pid, id('home'), version)
    t.teardown(() => kill(subject.pid))
    const before = cgroups(subject.pid)
    freezer.create()
    freezer.add(subject.pid)
    freezer.freeze()
    freezer.dissolve()
    t.equal(cgroups(subject.pid), before)
    process.kill(subject.pid, 'SIGUSR2')
    await eventually('it runs', () => subject.output().includes('}'))
  })

  t.test(`v${version}: at the top, and when the process is gone`, { skip }, async (t) => {
    const subject = await start('waiter', 'pause')
    const freezer = Freezer.atTop(id('top'), version)
    t.equal(freezer.record.home, null)
    freezer.create()
    freezer.add(subject.pid)
    freezer.freeze()
    kill(subject.pid)
    // v1 holds even a killed process; v2 lets it die.
    freezer.thaw()
    freezer.remove()
    t.notOk(existsSync(freezer.record.path))
    freezer.remove()
    t.throws(() => new Freezer(freezer.record).freeze(), { code: 'ENOENT' })
  })
}

t.test('version 2 is preferred; a process that is none', async (t) => {
  if (mounted[2]) t.equal(Freezer.atTop(id('x')).record.version, 2)
  t.throws(() => Freezer.forProcess(0x3f_ffff, id('x')), { code: 'ENOENT' })
})
