import { seededRandom } from '@pageferry/base'
import t from 'tap'
import { FAULTS, type FaultSpec, faultNamed, PHASES, Phases, planFault } from '../src/index.js'

function phases(faults: FaultSpec[] = []) {
  let nowMs = 100
  const log: string[] = []
  const wrapper = new Phases(
    {
      now: () => nowMs,
      sleep: async (ms) => {
        nowMs += ms
        log.push('slept')
      },
      crash: () => log.push('crash'),
      onStart: (phase) => log.push(`> ${phase}`),
      onEnd: ({ phase, error }) => log.push(`< ${phase}${error ? ` ${error.code}` : ''}`),
    },
    faults,
  )
  return { wrapper, log, advance: (ms: number) => (nowMs += ms) }
}

/** The smallest seed whose fault strikes at this moment. */
function seedFor(fault: Omit<FaultSpec, 'seed'>, moment: string): FaultSpec {
  for (let seed = 0; ; seed++) if (planFault({ ...fault, seed }).moment === moment) return { ...fault, seed }
}

t.test('times, reports and sums the runs of a phase', async (t) => {
  const { wrapper, log, advance } = phases()
  t.equal(await wrapper.run('round', () => advance(5) && 7), 7)
  await wrapper.run('round', async () => advance(2))
  await t.rejects(
    wrapper.run('freeze', () => {
      throw new Error('no')
    }),
    /no/,
  )
  t.equal(wrapper.durationMs('round'), 7)
  t.equal(wrapper.durationMs('serve'), 0)
  t.strictSame(log, ['> round', '< round', '> round', '< round', '> freeze', '< freeze INTERNAL'])
  t.match(wrapper.records[0], { phase: 'round', startMs: 100, durationMs: 5 })
})

t.test('a fault of a place strikes there, once, and at no moment of its phase', async (t) => {
  const fault = faultNamed('destination-crash-fork', 1) as FaultSpec
  const { wrapper, log } = phases([fault])
  await wrapper.run('postcopy', () => {
    t.notOk(log.includes('crash'))
    wrapper.reach('fork-event')
    wrapper.reach('fork-event')
  })
  t.strictSame(log, ['> postcopy', 'crash', '< postcopy'])
})

t.test('faults strike once, at the moment the seed says', async (t) => {
  for (const moment of ['before', 'after'] as const) {
    const fault = seedFor({ phase: 'round', kind: 'error' }, moment)
    const { wrapper } = phases([fault])
    let ran = 0
    await t.rejects(
      wrapper.run('round', () => ran++),
      { code: 'INTERNAL', details: { injected: true } },
    )
    t.equal(ran, moment === 'before' ? 0 : 1)
    await wrapper.run('round', () => ran++)
    t.equal(ran, moment === 'before' ? 1 : 2)
    const delayed = phases([seedFor({ phase: 'round', kind: 'delay' }, moment)])
    await delayed.wrapper.run('round', () => delayed.log.push('work'))
    t.strictSame(
      delayed.log.slice(1, 3),
      moment === 'before' ? ['slept', 'work'] : ['work', 'slept'],
      'a delay adds to the phase',
    )
  }
  for (const moment of ['before', 'during', 'after'] as const) {
    const { wrapper, log } = phases([seedFor({ phase: 'commit', kind: 'crash' }, moment)])
    await wrapper.run('commit', async () => {
      log.push('work')
      for (let i = 0; i < 5; i++) await null
      log.push('worked')
    })
    const at = log.indexOf('crash')
    if (moment === 'before') t.ok(at < log.indexOf('work'))
    if (moment === 'during') t.ok(at > log.indexOf('work') && at < log.indexOf('worked'))
    if (moment === 'after') t.ok(at > log.indexOf('worked'))
  }
})

t.test('the table of faults', async (t) => {
  const numbers = Object.values(FAULTS).map((fault) => fault.number)
  t.equal(new Set(numbers).size, numbers.length, 'numbers are unique')
  for (const fault of Object.values(FAULTS)) t.ok(PHASES.includes(fault.phase))
  t.strictSame(faultNamed('source-crash-commit', 3), { phase: 'commit', kind: 'crash', seed: 3 })
  t.match(faultNamed('destination-crash-fork', 3), { phase: 'postcopy', point: 'fork-event' })
  t.equal(faultNamed('toString', 3), undefined)
})

t.test('the same seed gives the same numbers, spread over [0, 1)', async (t) => {
  const draw = (seed: number) => {
    const random = seededRandom(seed)
    return Array.from({ length: 1000 }, () => random())
  }
  t.strictSame(draw(5), draw(5))
  t.not(draw(5)[0], draw(6)[0])
  const mean = draw(1).reduce((sum, x) => sum + x, 0) / 1000
  t.ok(mean > 0.45 && mean < 0.55)
  t.ok(draw(2).every((x) => x >= 0 && x < 1))
})
