import t from 'tap'
import { defaultMaxRounds, StopRule } from '../src/rounds.js'

const MiB = 1024 * 1024
const round = (pagesSent: number, dirtyNow: number, durationMs: number) => ({
  pagesSent,
  dirtyNow,
  bytes: pagesSent * 4096,
  durationMs,
})

t.test('an idle workload freezes after its first round', async (t) => {
  t.same(new StopRule().decide(round(100_000, 0, 300)), {
    action: 'freeze',
    reason: 'idle',
    estimatedDowntimeMs: 0,
  })
})

t.test('freezes when what is left fits the goal at the bandwidth seen', async (t) => {
  const rule = new StopRule({ maxDowntimeMs: 10 })
  // 256 MiB in 256 ms: 1 MiB/ms, so 10 ms carry 2560 pages.
  t.match(rule.decide(round(65536, 20000, 256)), { action: 'continue' })
  t.equal(rule.bytesPerMs, MiB)
  // Within the goal, but the next round would be short and leave much less.
  t.match(rule.decide(round(20000, 2560, (20000 * 4096) / MiB)), {
    action: 'continue',
    estimatedDowntimeMs: 10,
  })
  t.match(rule.decide(round(2560, 2560, (2560 * 4096) / MiB)), {
    action: 'freeze',
    reason: 'downtime-goal',
    estimatedDowntimeMs: 10,
  })
})

t.test('gives up when rounds do not shrink, or after the limit', async (t) => {
  const stubborn = new StopRule({ maxDowntimeMs: 1 })
  t.match(stubborn.decide(round(100_000, 50_000, 400)), { action: 'continue' })
  t.match(stubborn.decide(round(50_000, 45_000, 200)), { action: 'freeze', reason: 'not-shrinking' })

  const patient = new StopRule({ maxDowntimeMs: 1, patience: 2 })
  patient.decide(round(100_000, 90_000, 400))
  t.match(patient.decide(round(90_000, 40_000, 400)), { action: 'continue' }, 'one good round forgives')
  t.match(patient.decide(round(40_000, 39_000, 400)), { action: 'continue' })
  t.match(patient.decide(round(39_000, 38_000, 400)), { reason: 'not-shrinking' })

  const slow = new StopRule({ maxDowntimeMs: 0 })
  let pages = 1_000_000
  for (let i = 1; i < defaultMaxRounds; i++) {
    t.match(slow.decide(round(pages, pages * 0.7, 1000)), { action: 'continue' })
    pages *= 0.7
  }
  t.match(slow.decide(round(pages, pages * 0.7, 1000)), { action: 'freeze', reason: 'round-limit' })
  t.equal(slow.rounds, defaultMaxRounds)
})

t.test('small rounds do not spoil the estimate', async (t) => {
  const rule = new StopRule({ maxDowntimeMs: 0 })
  rule.decide(round(10, 8, 10))
  t.equal(rule.bytesPerMs, 4096, 'better than nothing')
  rule.decide(round(65536, 30000, 256))
  t.equal(rule.bytesPerMs, MiB, 'replaced by the first real measurement')
  rule.decide(round(10, 8, 10))
  t.equal(rule.bytesPerMs, MiB)
  rule.decide(round(65536, 8, 128))
  t.equal(rule.bytesPerMs, 1.5 * MiB, 'the latest weighs half')
  t.equal(new StopRule().downtimeMs(1), Number.POSITIVE_INFINITY)
})
