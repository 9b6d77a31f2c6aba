import { readFileSync } from 'node:fs'
import { processes, ptrace } from '@pageferry/kernel'
import { eventually } from '@pageferry/testing/eventually'
import { kill, type Subject } from '@pageferry/testing/processes'
import t, { type Test } from 'tap'
import { readStatus } from '../src/proc/status.js'
import { CallBatch, maxBatchCalls } from '../src/remote/call-batch.js'
import { StoppedProcess } from '../src/remote/stopped-process.js'
import { start } from './fixtures/start.js'

const SIGURG = 23
const SIGWINCH = 28

async function waiter(t: Test, how: string, ...more: string[]): Promise<Subject> {
  const subject = await start('waiter', how, '600', ...more)
  t.teardown(() => kill(subject.pid))
  return subject
}

const statOf = (pid: number) => readFileSync(`/proc/${pid}/stat`, 'utf8')

/** Stops it, makes batches in it, and lets it go. */
function withStopped(pid: number, use: (stopped: StoppedProcess, batch: () => CallBatch) => void): void {
  const stopped = StoppedProcess.stop(pid, 'all')
  try {
    stopped.mapScratch()
    const status = readStatus(pid)
    use(stopped, () => new CallBatch(stopped, stopped.leader, status))
  } finally {
    stopped.resume()
  }
}

function checkBatch(t: Test, pid: number, batch: CallBatch): void {
  const brk = batch.add('brk', 0)
  const wrong = batch.add('close', 987_654)
  const errno = batch.tryAdd('close', 987_654)
  const stack = batch.room(24)
  const name = batch.room(16)
  t.equal(name - stack, 24n)
  const calls = [batch.add('sigaltstack', 0, stack), batch.add('prctl', 16 /* PR_GET_NAME */, name, 0, 0, 0)]
  t.throws(() => batch.read(stack, 24), { code: 'INTERNAL' }, 'nothing is there before it has run')
  batch.run()
  t.ok(brk() > 0n)
  t.throws(wrong, { code: 'EBADF', syscall: 'close', pid })
  t.equal(errno(), -9n)
  t.same(
    calls.map((result) => result()),
    [0n, 0n],
  )
  t.equal(batch.read(stack, 24).readBigUInt64LE(16), 65536n, 'the size of its alternate stack')
  t.equal(batch.read(name, 6).toString(), 'waiter')
}

t.test('results, errors, and what calls have written', async (t) => {
  const { pid } = await waiter(t, 'user')
  withStopped(pid, (stopped, batch) => {
    const { leader } = stopped
    t.same(leader.markWith(readStatus(pid).sigCaught), { name: 'tgkill', args: [pid, pid, SIGURG] })
    checkBatch(t, pid, batch())
    t.ok(leader.call('brk', 0) > 0n, 'single calls go on')
    checkBatch(t, pid, batch())
    const longest = batch()
    for (let i = 0; i < maxBatchCalls; i++) longest.add('brk', 0)
    t.throws(() => longest.add('brk', 0), { code: 'INTERNAL' })
    const long = batch()
    const results = Array.from({ length: maxBatchCalls }, () => long.add('brk', 0))
    long.run()
    t.equal(new Set(results.map((result) => result())).size, 1)
    t.throws(() => long.room(1 << 20), { code: 'INTERNAL' })
  })
  process.kill(pid, 'SIGUSR2')
})

t.test('the stop that ends a batch is seen by nobody', async (t) => {
  const subject = await waiter(t, 'epoll_wait')
  const { pid } = subject
  const before = readStatus(pid)
  withStopped(pid, (_, batch) => checkBatch(t, pid, batch()))
  const after = readStatus(pid)
  t.same([after.sigPending, after.sharedPending, after.sigBlocked], [0n, 0n, before.sigBlocked])
  await eventually('the wait ends', () => subject.output().includes('}'))
  t.match(subject.facts(), { result: 0, errno: 0, handled: 0 })
})

t.test('other signals meanwhile', async (t) => {
  const subject = await waiter(t, 'epoll_wait')
  const { pid } = subject
  withStopped(pid, (stopped, batch) => {
    checkBatch(t, pid, batch())
    // From another process: the kernel would drop it without a tracer.
    processes.tgkill(pid, pid, SIGURG)
    checkBatch(t, pid, batch())
    processes.tgkill(pid, pid, SIGURG)
    t.ok(stopped.leader.call('brk', 0) > 0n)
    checkBatch(t, pid, batch())
    process.kill(pid, 'SIGSTOP')
    process.kill(pid, 'SIGUSR1')
    checkBatch(t, pid, batch())
    t.equal(readStatus(pid).sharedPending, 1n << 9n, 'SIGUSR1 waits')
  })
  await eventually('it is stopped', () => /\) T /.test(statOf(pid)))
  process.kill(pid, 'SIGCONT')
  await eventually('the wait ends', () => subject.output().includes('}'))
  t.match(subject.facts(), { result: -1, errno: 4, handled: 1 }, 'the handler of SIGUSR1 has run')
})

t.test('a program that takes every signal that could end a batch', async (t) => {
  const subject = await waiter(t, 'epoll_wait', 'takes')
  const { pid } = subject
  processes.tgkill(pid, pid, SIGWINCH)
  withStopped(pid, ({ leader }, batch) => {
    t.equal(leader.markWith(readStatus(pid).sigCaught), null)
    checkBatch(t, pid, batch())
    t.equal(ptrace.peekSiginfo(pid, false).length, 1, 'what was pending is pending')
  })
  t.equal(readStatus(pid).sigPending, 1n << BigInt(SIGWINCH - 1))
  await eventually('the wait ends', () => subject.output().includes('}'))
  t.match(subject.facts(), { result: 0, errno: 0, handled: 0 })
})
