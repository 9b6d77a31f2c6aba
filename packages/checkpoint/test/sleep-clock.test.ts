import { readFileSync } from 'node:fs'
import { processes } from '@pageferry/kernel'
import { eventually } from '@pageferry/testing/eventually'
import { kill, startSubject } from '@pageferry/testing/processes'
import t from 'tap'
import { lastProcessor, SchedulerClocks, schedulerFacts } from '../src/remote/sleep-clock.js'
import { SYS } from '../src/remote/syscalls.js'
import { compile } from './fixtures/start.js'

t.test('when a sleep began, on each processor', async (t) => {
  const allowed = processes.getAffinity(0)
  const now = () => processes.clockGettime(processes.CLOCK_MONOTONIC)
  const clocks = new SchedulerClocks()
  for (let processor = 0; processor < Math.min(4, allowed.length * 8); processor++) {
    if ((allowed[processor >> 3] & (1 << (processor & 7))) === 0) continue
    const before = now()
    const { pid } = await startSubject([
      'taskset',
      '-c',
      String(processor),
      compile('waiter'),
      'nanosleep',
      '60000',
    ])
    t.teardown(() => kill(pid))
    await eventually('it sleeps', () =>
      readFileSync(`/proc/${pid}/syscall`, 'utf8').startsWith(`${SYS.nanosleep} `),
    )
    const asleep = now()
    t.equal(lastProcessor(`/proc/${pid}`), processor)
    t.equal(clocks.offset(processor), null, 'not measured yet')
    clocks.measure(processor)
    const began = schedulerFacts(`/proc/${pid}/task/${pid}`).execStartNs + (clocks.offset(processor) ?? 0n)
    t.ok(began > before, 'never too early: a wait would end before its time')
    t.ok(began < asleep + 200_000_000n, `${began - asleep} ns after it was seen asleep`)
  }
  t.same(processes.getAffinity(0), allowed, 'we run where we ran before')
  clocks.measure(100_000)
  t.equal(clocks.offset(100_000), null, 'a processor that is not there')
})
