import { closeSync, fstatSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { memory, processes, ptrace } from '@pageferry/kernel'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive, kill, type Subject } from '@pageferry/testing/processes'
import t, { type Test } from 'tap'
import { readFds } from '../src/proc/fdinfo.js'
import { readStatus } from '../src/proc/status.js'
import { interruptedCall } from '../src/remote/interrupted.js'
import { StoppedProcess } from '../src/remote/stopped-process.js'
import { SYS } from '../src/remote/syscalls.js'
import { takeFd } from '../src/remote/workload-thread.js'
import { start } from './fixtures/start.js'

const { REG } = ptrace

async function waiter(t: Test, how: string, ms = 400): Promise<Subject> {
  const subject = await start('waiter', how, String(ms))
  t.teardown(() => kill(subject.pid))
  if (how in SYS) {
    await eventually(`it sleeps in ${how}`, () => syscallOf(subject.pid) === SYS[how as keyof typeof SYS])
  }
  return subject
}

const syscallOf = (pid: number) => Number.parseInt(readFileSync(`/proc/${pid}/syscall`, 'utf8'), 10)
const stateOf = (pid: number) => /\) (\w) /.exec(readFileSync(`/proc/${pid}/stat`, 'utf8'))?.[1]

/** Stops it, makes calls in it, and lets it go; what it was found in. */
function disturb(pid: number, before: (stopped: StoppedProcess) => void = () => {}): number {
  const stopped = StoppedProcess.stop(pid, 'all')
  try {
    before(stopped)
    stopped.mapScratch()
    if (stopped.leader.call('getitimer', 0, stopped.scratch) !== 0n) throw new Error('getitimer')
    return interruptedCall(stopped.leader.regs)
  } finally {
    stopped.resume()
  }
}

async function ended(subject: Subject): Promise<Record<string, string | number>> {
  await eventually('the wait ends', () => subject.output().includes('}') || !isAlive(subject.pid))
  return subject.facts()
}

t.test('results, errors and descriptors', async (t) => {
  const { pid } = await waiter(t, 'pause')
  const stopped = StoppedProcess.stop(pid, 'all')
  try {
    const thread = stopped.leader
    t.equal(thread.call('brk', 0), BigInt(readHeapEnd(pid)))
    t.throws(() => thread.call('close', 987_654), { code: 'EBADF', syscall: 'close', pid })
    t.equal(thread.tryCall('close', 987_654), -9n)
    t.equal(thread.call('brk', 0), BigInt(readHeapEnd(pid)), 'works on after an error')

    const before = readFds(pid).map(({ fd }) => fd)
    const copy = thread.callFd(
      (fd) => {
        t.notOk(before.includes(fd))
        t.ok(
          readFds(pid).some((info) => info.fd === fd),
          'open while it is used',
        )
        return takeFd(stopped.pidfd, fd)
      },
      'userfaultfd',
      0o2004000,
    )
    t.ok(fstatSync(copy).ino > 0)
    closeSync(copy)
    t.same(
      readFds(pid).map(({ fd }) => fd),
      before,
      'closed behind',
    )
    t.throws(
      () =>
        thread.callFd(
          () => {
            throw new Error('the user failed')
          },
          'userfaultfd',
          0o2004000,
        ),
      /the user failed/,
    )
    t.same(
      readFds(pid).map(({ fd }) => fd),
      before,
      'also when the user fails',
    )
    t.throws(() => thread.callFd((fd) => fd, 'userfaultfd', 0xffff), { code: 'EINVAL' })
    t.same(
      readFds(pid).map(({ fd }) => fd),
      before,
    )
    t.ok(thread.call('brk', 0) > 0n)

    const { page, nrPages } = stopped.mapScratch()
    stopped.write(stopped.scratch, Buffer.from('hello'))
    t.equal(stopped.read(stopped.scratch, 5).toString(), 'hello')
    stopped.unmapScratch()
    t.throws(() => stopped.read(BigInt(page * 4096), nrPages), { code: 'EIO' })
    t.throws(() => stopped.scratch, { code: 'INTERNAL' })
  } finally {
    stopped.resume()
  }
  t.equal(readStatus(pid).tracerPid, 0)
  await eventually('it sleeps again', () => syscallOf(pid) === SYS.pause)
})

function readHeapEnd(pid: number): string {
  const line = readFileSync(`/proc/${pid}/maps`, 'utf8')
    .split('\n')
    .find((each) => each.endsWith('[heap]'))
  return `0x${/-([0-9a-f]+)/.exec(line ?? '')?.[1]}`
}

t.test('a sleep goes on for the time that remains', async (t) => {
  const results: Record<string, [number, number]> = {
    nanosleep: [0, 0],
    clock_nanosleep: [0, 0],
    poll: [0, 0],
    futex: [-1, 110 /* ETIMEDOUT */],
  }
  const subjects = await Promise.all(
    Object.keys(results).map(async (how) => ({ how, subject: await waiter(t, how, 1000) })),
  )
  for (let i = 0; i < 3; i++) {
    for (const { subject } of subjects) disturb(subject.pid)
    await sleep(300)
  }
  for (const { how, subject } of subjects) {
    const { result, errno, ms } = await ended(subject)
    t.same([result, errno], results[how], how)
    // Started anew at every stop it would take at least 1,900.
    t.ok(Number(ms) >= 1000 && Number(ms) < 1800, `${how} took ${ms} ms of 1,000`)
  }
})

t.test('calls that end with EINTR after any stop are made again', async (t) => {
  for (const how of ['epoll_wait', 'sigtimedwait']) {
    const subject = await waiter(t, how)
    if (how === 'sigtimedwait')
      await eventually('it sleeps', () => syscallOf(subject.pid) === SYS.rt_sigtimedwait)
    t.equal(disturb(subject.pid), how === 'epoll_wait' ? SYS.epoll_wait : SYS.rt_sigtimedwait)
    await sleep(30)
    t.notOk(subject.output().includes('}'), `${how} goes on`)
    const { result, errno } = await ended(subject)
    t.same([result, errno], how === 'epoll_wait' ? [0, 0] : [-1, 11 /* EAGAIN: the time is over */], how)
  }
})

t.test('a signal that comes during the stop interrupts as always', async (t) => {
  for (const how of ['epoll_wait', 'nanosleep', 'pause', 'poll', 'sigsuspend']) {
    const subject = await waiter(t, how, 5000)
    if (how === 'sigsuspend')
      await eventually('it sleeps', () => syscallOf(subject.pid) === SYS.rt_sigsuspend)
    disturb(subject.pid, () => process.kill(subject.pid, 'SIGUSR1'))
    const { result, errno, handled } = await ended(subject)
    t.same([result, errno, handled], [-1, 4, 1], how)
  }
})

t.test('a signal that was pending before the stop', async (t) => {
  const subject = await waiter(t, 'epoll_wait', 5000)
  // Sent and stopped at once: the thread had no time to take it.
  process.kill(subject.pid, 'SIGUSR1')
  disturb(subject.pid)
  const { result, errno, handled } = await ended(subject)
  t.same([result, errno, handled], [-1, 4, 1])
})

t.test('a blocked signal stays pending, and the mask is what it was', async (t) => {
  const { pid } = await waiter(t, 'pause')
  const blocked = 36
  processes.tgkill(pid, pid, blocked)
  disturb(pid, (stopped) => {
    t.equal(stopped.leader.mask, 1n << BigInt(blocked - 1))
    t.equal(ptrace.peekSiginfo(pid, false).length, 1)
  })
  const status = readStatus(pid)
  t.equal(status.sigPending, 1n << BigInt(blocked - 1))
  t.equal(status.sigBlocked, 1n << BigInt(blocked - 1))
})

t.test('the mask of sigsuspend is temporary, and stays so', async (t) => {
  const subject = await waiter(t, 'sigsuspend')
  await eventually('it sleeps', () => syscallOf(subject.pid) === SYS.rt_sigsuspend)
  const during = readStatus(subject.pid).sigBlocked
  disturb(subject.pid, (stopped) =>
    t.equal(stopped.leader.mask, during | (1n << 9n), 'the one it comes back to'),
  )
  await eventually('it sleeps again', () => syscallOf(subject.pid) === SYS.rt_sigsuspend)
  t.equal(readStatus(subject.pid).sigBlocked, during)
})

t.test('a thread in user mode', async (t) => {
  const subject = await waiter(t, 'user')
  for (let i = 0; i < 20; i++) t.equal(disturb(subject.pid), -1)
  process.kill(subject.pid, 'SIGUSR2')
  t.match(await ended(subject), { result: 0, errno: 0 })
})

t.test('inside a handler on an alternate stack', async (t) => {
  const subject = await waiter(t, 'altstack')
  t.equal(subject.output(), 'ready\n')
  disturb(subject.pid, (stopped) => {
    const { page } = stopped.mapScratch()
    stopped.leader.call('sigaltstack', 0, stopped.scratch)
    t.equal(
      stopped.read(BigInt(page * 4096), 24).readUInt32LE(8),
      1,
      'SS_ONSTACK: its stack pointer is in place',
    )
    stopped.unmapScratch()
  })
  process.kill(subject.pid, 'SIGUSR2')
  await ended(subject)
  t.match(subject.output(), /^ready\nonstack\n/)
})

t.test('SIGSTOP that arrives during injection stops the workload afterwards', async (t) => {
  for (const how of ['user', 'epoll_wait']) {
    const subject = await waiter(t, how, 600)
    const { pid } = subject
    disturb(pid, (stopped) => {
      t.ok(stopped.leader.call('brk', 0) > 0n)
      process.kill(pid, 'SIGSTOP')
      t.ok(stopped.leader.call('brk', 0) > 0n, 'calls go on')
      t.ok(stopped.leader.call('brk', 0) > 0n)
      t.throws(() => stopped.leader.call('close', 987_654), { code: 'EBADF' })
    })
    await eventually('it is stopped', () => stateOf(pid) === 'T')
    process.kill(pid, 'SIGCONT')
    await eventually('it goes on', () => stateOf(pid) !== 'T')
    if (how === 'user') {
      process.kill(pid, 'SIGUSR2')
      t.match(await ended(subject), { result: 0, errno: 0 })
    } else {
      const { result, errno } = await ended(subject)
      t.match([result, errno], [0, 0], 'no handler ran, so the wait goes on')
    }
  }
})

t.test('SIGKILL during the stop', async (t) => {
  const { pid } = await waiter(t, 'pause')
  const stopped = StoppedProcess.stop(pid, 'all')
  stopped.leader.call('brk', 0)
  kill(pid)
  await eventually('it is gone', () => !isAlive(pid))
  t.throws(() => stopped.leader.call('brk', 0))
  t.throws(() => stopped.resume())
})

t.test('registers are found and left as they were', async (t) => {
  const { pid } = await waiter(t, 'user')
  const stopped = StoppedProcess.stop(pid, 'all')
  try {
    const found = ptrace.getRegs(pid)
    const xstate = ptrace.getXstate(pid)
    stopped.leader.call('brk', 0)
    t.not(ptrace.getRegs(pid)[REG.rip], found[REG.rip])
    stopped.leave()
    t.same(ptrace.getRegs(pid), found)
    // Not the header: it says which parts hold their initial values, which the processor may find out at any time.
    const parts = (state: Uint8Array) => [state.slice(0, 512), state.slice(576)]
    t.same(parts(ptrace.getXstate(pid)), parts(xstate))
    t.equal(ptrace.getSigmask(pid), stopped.leader.mask)
    stopped.leave()
    t.same(ptrace.getRegs(pid), found, 'idempotent')
  } finally {
    stopped.resume()
  }
})

t.test('inside a restartable sequence the thread goes on at its abort', async (t) => {
  const subject = await start('rseq')
  const { pid } = subject
  t.teardown(() => kill(pid))
  const facts = subject.facts()
  const [from, to, abort] = ['start', 'end', 'abort'].map((name) => BigInt(facts[name]))
  const count = (name: string) => Buffer.from(memory.readBytes(pid, BigInt(facts[name]), 8)).readBigInt64LE(0)
  await eventually('it is in the sequence', () => count('turns') > 1000n)
  let inside = 0
  for (let i = 0; i < 20; i++) {
    const stopped = StoppedProcess.stop(pid, 'all')
    const { rip } = { rip: ptrace.getRegs(pid)[REG.rip] }
    const abortsBefore = count('aborts')
    if (rip >= from && rip < to) {
      inside++
      t.equal(stopped.leader.regs[REG.rip], abort)
    }
    stopped.leader.call('brk', 0)
    stopped.resume()
    if (rip >= from && rip < to) await eventually('it was aborted', () => count('aborts') > abortsBefore)
  }
  t.ok(inside > 5, `${inside} of 20 stops were inside`)
})
