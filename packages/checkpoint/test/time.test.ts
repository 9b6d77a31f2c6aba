// A pause, made long on purpose, moves no deadline, and no tick of a timer is lost in it.

import { setTimeout as sleep } from 'node:timers/promises'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive, kill, type Subject } from '@pageferry/testing/processes'
import t, { type Test } from 'tap'
import { StoppedProcess } from '../src/remote/stopped-process.js'
import { move } from './fixtures/move.js'
import { start } from './fixtures/start.js'

const EINTR = 4
const EAGAIN = 11
const ETIMEDOUT = 110

/** Before the state is restored, and again afterwards. */
const pauseMs = 2000
/** Longer than both pauses, so that each wait ends after them. */
const waitMs = 6000
/** What a busy machine may add: less than either pause, whose length would show. */
const lateMs = 1500

/** Results of the waits that do not end with 0, as [result, errno]. */
const otherEnds: Record<string, readonly [number, number]> = {
  futex: [-1, ETIMEDOUT],
  'futex-until': [-1, ETIMEDOUT],
  sigtimedwait: [-1, EAGAIN],
  semtimedop: [-1, EAGAIN],
  signalled: [-1, EINTR],
}

async function endsInTime(t: Test, subject: Subject, pid: number): Promise<void> {
  await eventually('all waits have ended', () => subject.output().includes('ended') || !isAlive(pid), {
    timeoutMs: 30_000,
  })
  const facts = Object.entries(subject.facts())
  t.equal(facts.length, 17)
  for (const [way, fact] of facts) {
    const [result, errno, ms] = String(fact).split(' ').map(Number)
    t.same([result, errno], otherEnds[way] ?? [0, 0], way)
    t.ok(ms >= waitMs - 2 && ms < waitMs + lateMs, `${way}: ${ms} ms of ${waitMs}`)
  }
}

t.test('no wait ends late by the pause of a move, or early', async (t) => {
  const subject = await start('waits', String(waitMs))
  t.teardown(() => kill(subject.pid))
  const { pid } = await move(t, subject.pid, undefined, pauseMs)
  await endsInTime(t, subject, pid)
})

t.test('nor by that of a move that has failed', async (t) => {
  const subject = await start('waits', String(waitMs))
  t.teardown(() => kill(subject.pid))
  const stopped = StoppedProcess.stop(subject.pid, 'all')
  await sleep(2 * pauseMs)
  stopped.resume()
  await endsInTime(t, subject, subject.pid)
})

t.test('timers', async (t) => {
  const endMs = 8000
  const subject = await start('timers', String(endMs))
  t.teardown(() => kill(subject.pid))
  t.equal(subject.output(), 'ready\n')
  const { pid, notMoved } = await move(t, subject.pid, undefined, pauseMs)
  await eventually('it has looked at all', () => /^end$/m.test(subject.output()) || !isAlive(pid), {
    timeoutMs: 30_000,
  })
  const facts = subject.facts()
  const numbers = (what: string) => String(facts[what]).split(' ').map(Number)

  for (const what of ['monotonic-after', 'boottime-after', 'realtime-after', 'realtime-until']) {
    const [ms] = numbers(what)
    t.ok(ms >= 5998 && ms < 6000 + lateMs, `${what}: ${ms}`)
  }
  for (const what of ['monotonic-in-pause', 'realtime-in-pause', 'alarm']) {
    t.ok(numbers(what)[0] >= 2 * pauseMs, `${what}: as soon as it runs, ${facts[what]}`)
    t.ok(numbers(what)[0] < 6000, `${what}: not with what had remained, ${facts[what]}`)
  }
  const [nextAlarm, interval] = numbers('real')
  t.ok(nextAlarm > 21_000 && nextAlarm < 22_000, `the interval goes on in its phase: ${nextAlarm}`)
  t.equal(interval, 20)

  const isWhole = (ticks: number, ms: number) => ticks <= ms / 100 && ticks >= ms / 100 - 3
  const [taken, takenMs] = numbers('taken')
  t.ok(isWhole(taken, takenMs), `${taken} ticks of 100 ms in ${takenMs} ms`)
  for (const what of ['monotonic', 'realtime', 'boottime-thread', 'number-once', 'among-others']) {
    const [ticks, sameOverrun, others, ms] = numbers(`blocked-${what}`)
    t.ok(isWhole(ticks, ms), `${what}: ${ticks} ticks of 100 ms in ${ms} ms`)
    t.equal(sameOverrun, 1, 'timer_getoverrun says the same')
    t.equal(others, what === 'among-others' ? 12 : 0, 'other signals, in their order')
  }

  for (const what of ['monotonic', 'boottime', 'realtime', 'read-before']) {
    const [ticks, ms] = numbers(`fd-${what}`)
    t.ok(isWhole(ticks, ms), `timerfd ${what}: ${ticks} ticks of 100 ms in ${ms} ms`)
  }
  t.same(numbers('fd-once'), [1, -EAGAIN], 'expired before the move')
  t.same(numbers('fd-unset'), [-EAGAIN])
  t.ok(Math.abs(numbers('fd-of-day')[0]) < lateMs, `the same time of day, and ${facts['fd-of-day']} ms`)

  const [virtual, virtualInterval] = numbers('virtual')
  t.ok(virtual < 800 && virtual > 780 && virtualInterval === 3, `ITIMER_VIRTUAL: ${facts.virtual}`)
  t.ok(numbers('prof')[0] < 900 && numbers('prof')[0] > 880, `ITIMER_PROF: ${facts.prof}`)
  const [soft, hard] = numbers('limit')
  t.ok(soft < 1000 && soft > 990, `RLIMIT_CPU: ${soft} of 1000 s remain`)
  t.equal(hard, soft + 1000)
  for (const [what, total] of [
    ['caller', 500_000],
    ['process', 600_000],
  ] as const) {
    const [before, after] = numbers(`cpu-of-${what}`)
    t.ok(
      before < total && after <= before - 150 && after > before - 5000,
      `${what}: ${before}, then ${after}`,
    )
  }
  t.ok(numbers('cpu-of-idle-thread')[0] > 699_900, 'the clock of a thread that uses no time')
  const [left, more, again] = numbers('cpu-fires')
  t.ok(
    more > 0 && more < left - 100,
    `it had ${left} ms left, of which another thread used 200, then it took ${more}`,
  )
  t.equal(again, -1, 'once')
  t.match(
    notMoved.find(({ what }) => what.startsWith('cpu-time')),
    { what: /^cpu-time of the process \(\d+\.\d\d s\)$/, reason: /begins anew/ },
  )
})
