// test-group: pure

import type { PosixTimerEntry } from '@pageferry/images'
import { processes } from '@pageferry/kernel'
import t from 'tap'
import { clockProblem, explicitClock } from '../src/kinds/timer-clocks.js'
import { armedFor, nextAlarm } from '../src/kinds/timer-deadlines.js'

const second = 1_000_000_000n
/** The workload's clocks differ from each other and from the time of day. */
const now = { monotonicNs: 1000n * second, boottimeNs: 1700n * second, wallNs: 90_000n * second }
const [realtime, monotonic, boottime] = [0, processes.CLOCK_MONOTONIC, processes.CLOCK_BOOTTIME]

function timer(clockId: number, fields: Partial<PosixTimerEntry> = {}): PosixTimerEntry {
  const none = { itId: 0, siSigno: 34, itSigevNotify: 0, sivalPtr: 0n, overrun: 0, isec: 0n, insec: 0n }
  return { ...none, clockId, vsec: 5n, vnsec: 0n, deadlineNs: 1005n * second, ...fields }
}

t.test('when a POSIX timer expires', async (t) => {
  t.same(armedFor(timer(monotonic), undefined, now), { isAbsolute: true, ns: 1005n * second })
  t.same(armedFor(timer(boottime), undefined, now), { isAbsolute: true, ns: 1705n * second })
  t.same(armedFor(timer(realtime), undefined, now), { isAbsolute: false, ns: 5n * second })

  const late = { deadlineNs: 997n * second, isec: 2n }
  t.same(armedFor(timer(monotonic, late), undefined, now), { isAbsolute: true, ns: 997n * second })
  t.same(armedFor(timer(boottime, late), undefined, now), { isAbsolute: true, ns: 1697n * second })
  t.same(armedFor(timer(realtime, late), undefined, now), { isAbsolute: true, ns: 89_997n * second })

  t.same(
    armedFor(timer(monotonic, late), 0, now),
    { isAbsolute: true, ns: 995n * second },
    'it has queued its signal one interval before',
  )
  t.same(armedFor(timer(monotonic, late), 9, now), { isAbsolute: true, ns: 977n * second })
  t.same(armedFor(timer(monotonic, late), 900, now), { isAbsolute: true, ns: 1n }, 'never 0')

  t.same(
    armedFor(timer(0xffff_fffa, { deadlineNs: undefined }), undefined, now),
    { isAbsolute: false, ns: 5n * second },
    'processor time: what remained',
  )
  t.equal(armedFor(timer(monotonic, { deadlineNs: undefined, vsec: 0n }), undefined, now), null)
})

t.test('when ITIMER_REAL expires', async (t) => {
  const next = (deadline: bigint | undefined, isec = 0n, vsec = 5n) =>
    nextAlarm({ isec, iusec: 0n, vsec, vusec: 0n, deadlineNs: deadline }, now.monotonicNs)
  t.same(next(1004n * second), { hasExpired: false, leftUs: 4_000_000n })
  t.same(next(1004n * second + 1n), { hasExpired: false, leftUs: 4_000_001n }, 'never early')
  t.same(next(990n * second), { hasExpired: false, leftUs: 1n }, 'it has expired in the pause')
  t.same(next(990n * second, 7n), { hasExpired: true, leftUs: 4_000_000n }, 'at 990, 997, 1004')
  t.same(next(1000n * second, 7n), { hasExpired: true, leftUs: 7_000_000n })
  t.same(next(undefined, 0n, 0n), { hasExpired: false, leftUs: 0n }, 'it is not armed')
  t.same(next(undefined, 7n, 0n), { hasExpired: false, leftUs: 7_000_000n }, 'its signal is pending')
  t.same(next(undefined, 7n), { hasExpired: false, leftUs: 5_000_000n })
})

t.test('clocks of processor time', async (t) => {
  const of = (clockId: number, notify = 0, notifyTid = 10) => ({
    ...{ id: 0, signal: 34, value: 0n, clockId, notify, notifyTid },
  })
  const process = (pid: number) => (~pid << 3) | 2
  const thread = (tid: number) => process(tid) | 4
  const problem = (clockId: number, notify = 0, nsTids = [10, 11]) =>
    clockProblem(of(clockId, notify), nsTids)
  for (const id of [0, 1, 7, 8, 9, 11, -6, process(10), thread(10), thread(11)])
    t.equal(problem(id), null, `${id}`)
  t.match(problem(process(12)), /another process/)
  t.match(problem(process(11)), /another process/)
  t.match(problem(thread(12)), /has ended/)
  t.match(problem(-2), /of which thread/)
  t.equal(problem(-2, 4), null, 'it signals a thread')
  t.equal(problem(-2, 0, [10]), null, 'there is only one')
  t.match(problem((~5 << 3) | 3), /a device/)
  t.match(problem(16), /unknown/)

  t.equal(explicitClock(of(-2, 4, 11), [10, 11]), thread(11))
  t.equal(explicitClock(of(-2), [10]), thread(10))
  for (const id of [1, -6, thread(11)]) t.equal(explicitClock(of(id, 4, 10), [10, 11]), id)
})
