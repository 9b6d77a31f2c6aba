import fc from 'fast-check'
import t from 'tap'
import { fixedDowntimeMs, maxFreezeBudgetPages, StopRule, type StopRuleOptions } from '../src/rounds.js'
import { fcOptions } from './fc.js'

const defaults = { maxRounds: 8, maxDowntimeMs: 25 }
const ruleOf = (options: Partial<StopRuleOptions> = {}) => new StopRule({ ...defaults, ...options })

const MiB = 1024 * 1024
const round = (pagesSent: number, dirtyNow: number, durationMs: number) => ({
  pagesSent,
  dirtyNow,
  bytes: pagesSent * 4096,
  durationMs,
})

t.test('an idle workload freezes after its first round', async (t) => {
  t.same(ruleOf().decide(round(100_000, 0, 300)), {
    action: 'freeze',
    reason: 'idle',
    estimatedDowntimeMs: fixedDowntimeMs,
  })
})

t.test('freezes when what is left fits the goal at the bandwidth seen', async (t) => {
  const rule = ruleOf({ maxDowntimeMs: fixedDowntimeMs + 10 })
  // 256 MiB in 256 ms: 1 MiB/ms, so 10 ms carry 2560 pages.
  t.match(rule.decide(round(65536, 20000, 256)), { action: 'continue' })
  t.equal(rule.bytesPerMs, MiB)
  t.equal(rule.freezeBudgetPages, 2560)
  // Within the goal, but the next round would be short and leave much less.
  t.match(rule.decide(round(20000, 2000, (20000 * 4096) / MiB)), { action: 'continue' })
  // 2000 pages in 8 ms: until everything stands still, 2 ms later, there will be 500 more.
  t.match(rule.decide(round(2048, 2048, (2048 * 4096) / MiB)), {
    action: 'freeze',
    reason: 'downtime-goal',
    estimatedDowntimeMs: fixedDowntimeMs + 10,
  })
  t.equal(rule.dirtyPagesPerMs, 256)
})

t.test('gives up when rounds do not shrink, or after the limit', async (t) => {
  const stubborn = ruleOf({ maxDowntimeMs: 1 })
  t.match(stubborn.decide(round(100_000, 50_000, 400)), { action: 'continue' })
  t.match(stubborn.decide(round(50_000, 45_000, 200)), { action: 'freeze', reason: 'not-shrinking' })

  const patient = ruleOf({ maxDowntimeMs: 1, patience: 2 })
  patient.decide(round(100_000, 90_000, 400))
  t.match(patient.decide(round(90_000, 40_000, 400)), { action: 'continue' }, 'one good round forgives')
  t.match(patient.decide(round(40_000, 39_000, 400)), { action: 'continue' })
  t.match(patient.decide(round(39_000, 38_000, 400)), { reason: 'not-shrinking' })

  const slow = ruleOf({ maxDowntimeMs: 0 })
  let pages = 1_000_000
  for (let i = 1; i < defaults.maxRounds; i++) {
    t.match(slow.decide(round(pages, pages * 0.7, 1000)), { action: 'continue' })
    pages *= 0.7
  }
  t.match(slow.decide(round(pages, pages * 0.7, 1000)), { action: 'freeze', reason: 'round-limit' })
  t.equal(slow.rounds, defaults.maxRounds)
})

t.test('small rounds do not spoil the estimate', async (t) => {
  const rule = ruleOf({ maxDowntimeMs: 0 })
  rule.decide(round(10, 8, 10))
  t.equal(rule.bytesPerMs, 4096, 'better than nothing')
  rule.decide(round(65536, 30000, 256))
  t.equal(rule.bytesPerMs, MiB, 'replaced by the first real measurement')
  rule.decide(round(10, 8, 10))
  rule.decide(round(4095, 2000, 100))
  t.equal(rule.bytesPerMs, MiB)
  rule.decide(round(65536, 8, 128))
  t.equal(rule.bytesPerMs, 1.5 * MiB, 'the latest weighs half')
  t.equal(ruleOf().downtimeMs(1), Number.POSITIVE_INFINITY)
})

t.test('mode precopy does not give up before the limit', async (t) => {
  const rule = ruleOf({ canFollowLazily: false, maxRounds: 5 })
  for (let i = 1; i < 5; i++) t.match(rule.decide(round(50_000, 50_000, 200)), { action: 'continue' })
  t.match(rule.decide(round(50_000, 50_000, 200)), { reason: 'round-limit' })
})

t.test('the budget of a freeze is what the fixed part leaves, and has an end', async (t) => {
  const budget = (maxDowntimeMs: number, bytesPerMs: number) => {
    const rule = ruleOf({ maxDowntimeMs })
    t.equal(rule.freezeBudgetPages, 0, 'nothing is known of the bandwidth')
    rule.decide({ pagesSent: 1000, dirtyNow: 1000, bytes: bytesPerMs * 1000, durationMs: 1000 })
    return rule.freezeBudgetPages
  }
  t.equal(budget(25, MiB), 5 * 256)
  t.equal(budget(25, 12_500), 15, '100 Mbit/s')
  t.equal(budget(20, MiB), 0)
  t.equal(budget(1, MiB), 0)
  t.equal(budget(60_000, MiB), maxFreezeBudgetPages)
})

/** Pages written in a stretch of time, each counted once. */
type Workload = (fromMs: number, ms: number) => number

/** Writes at random in a working set, so that what is written again does not count. */
const randomWrites =
  (pages: number, perMs: number): Workload =>
  (_, ms) =>
    Math.round(pages * (1 - Math.exp((-perMs * ms) / pages)))

/** Rounds of a process of so many pages over a link, each with 2 ms that do not depend on its pages. */
function simulate(rule: StopRule, workload: Workload, totalPages: number, bytesPerMs: number) {
  const roundMs = 2
  let todo = totalPages
  let now = 0
  for (let rounds = 1; ; rounds++) {
    const durationMs = roundMs + (todo * 4096) / bytesPerMs
    const dirtyNow = Math.min(totalPages, workload(now, durationMs))
    now += durationMs
    const decision = rule.decide({ pagesSent: todo, dirtyNow, bytes: todo * 4096, durationMs })
    if (decision.action === 'freeze') return { ...decision, rounds, dirtyNow }
    if (rounds > rule.maxRounds) throw new Error('an endless loop')
    todo = dirtyNow
  }
}

t.test('models of workloads', async (t) => {
  const totalPages = 131_072
  t.match(
    simulate(ruleOf(), () => 0, totalPages, MiB),
    { rounds: 1, reason: 'idle' },
  )

  // 1 MiB/ms are 256 pages/ms. Slower than that: it converges.
  const slow = simulate(ruleOf(), randomWrites(totalPages, 50), totalPages, MiB)
  t.match(slow, { reason: 'downtime-goal' })
  t.ok(slow.rounds <= 5, `${slow.rounds} rounds`)

  const fast = randomWrites(10 * totalPages, 400)
  t.match(simulate(ruleOf(), fast, totalPages, MiB), { reason: 'not-shrinking', rounds: 1 })
  const precopy = ruleOf({ canFollowLazily: false })
  t.match(simulate(precopy, fast, totalPages, MiB), { reason: 'round-limit', rounds: defaults.maxRounds })

  // Writes a small set as fast as it can: only a freeze makes that stand still, and it fits.
  const hot = simulate(ruleOf(), randomWrites(500, 10_000), totalPages, MiB)
  t.match(hot, { reason: 'downtime-goal', dirtyNow: 500 })

  // The same, larger than what fits: after a round that has shown it nothing more is tried.
  const large = simulate(ruleOf(), randomWrites(20_000, 10_000), totalPages, MiB)
  t.match(large, { reason: 'not-shrinking', rounds: 2 })

  // A phase of much writing ends while rounds run.
  const shrinking: Workload = (from, ms) =>
    randomWrites(Math.ceil(60_000 * 0.5 ** (from / 100)), 1000)(from, ms)
  t.match(simulate(ruleOf(), shrinking, totalPages, MiB), { reason: 'downtime-goal' })
})

t.test('whatever the workload does, rounds end, and within the goal when they say so', async () => {
  fc.assert(
    fc.property(
      fc.record({
        totalPages: fc.integer({ min: 1, max: 1_000_000 }),
        workingSet: fc.integer({ min: 1, max: 1_000_000 }),
        perMs: fc.integer({ min: 0, max: 5000 }),
        bytesPerMs: fc.integer({ min: 100, max: 4_000_000 }),
        maxDowntimeMs: fc.integer({ min: 1, max: 1000 }),
        maxRounds: fc.integer({ min: 1, max: 20 }),
        canFollowLazily: fc.boolean(),
      }),
      ({ totalPages, workingSet, perMs, bytesPerMs, ...options }) => {
        const rule = ruleOf(options)
        const workload = randomWrites(Math.min(workingSet, totalPages), perMs)
        const end = simulate(rule, workload, totalPages, bytesPerMs)
        const { rounds, reason, dirtyNow, estimatedDowntimeMs } = end
        if (rounds > options.maxRounds) throw new Error(`${rounds} rounds`)
        if (reason === 'round-limit' && rounds !== options.maxRounds) throw new Error('too early')
        if (reason === 'not-shrinking' && !options.canFollowLazily) throw new Error('precopy gave up')
        if ((reason === 'idle') !== (dirtyNow === 0)) throw new Error(`${dirtyNow} pages: ${reason}`)
        // The mean of the bandwidth lies below the link's, so a pause is never longer than predicted.
        const actual = fixedDowntimeMs + (dirtyNow * 4096) / bytesPerMs
        if (actual > estimatedDowntimeMs + 0.001) throw new Error(`${actual} ms, not ${estimatedDowntimeMs}`)
        if (reason === 'downtime-goal' && actual > options.maxDowntimeMs) throw new Error(`${actual} ms`)
        const hotMs = (rule.freezeBudgetPages * 4096) / bytesPerMs
        if (hotMs > Math.max(0, options.maxDowntimeMs - fixedDowntimeMs))
          throw new Error(`${hotMs} ms of hot pages`)
      },
    ),
    fcOptions(2000),
  )
})
