import type { Lane } from '@pageferry/wire'
import fc from 'fast-check'
import t from 'tap'
import {
  type CommonEvent,
  DESTINATION_STATES,
  type DestinationEvent,
  type DestinationState,
  destinationStateFromJournal,
  type ErrorMessage,
  SOURCE_STATES,
  type SourceEvent,
  type SourceState,
  sourceStateFromJournal,
  sourceWorkloadAt,
  startDestination,
  startSource,
  stepDestination,
  stepSource,
  takesRoundFrame,
} from '../src/index.js'
import { ALL_MESSAGES, toDestination, toSource } from './frames.js'

const numRuns = Number(process.env.FC_RUNS ?? 5000)
const seed = process.env.FC_SEED === undefined ? undefined : Number(process.env.FC_SEED)
const info = { code: 'KERNEL', message: 'no' } as const

const laneEvents = fc.constantFrom<Lane>('control', 'fault', 'bulk')
const anyEvent = (steps: string[], effects: string[], records: string[]): fc.Arbitrary<never> =>
  fc.oneof(
    fc.constantFrom(...ALL_MESSAGES).map((message) => ({ type: 'message', message })),
    fc.constant({ type: 'message', message: { type: 'drained', error: info } }),
    fc.constant({ type: 'message', message: { type: 'nonsense' } }),
    fc.constant({ type: 'nonsense' }),
    fc.constantFrom('connected', 'peerUnknown', 'cancel').map((type) => ({ type })),
    laneEvents.map((lane) => ({ type: 'laneLost', lane, index: 0 })),
    laneEvents.map((lane) => ({ type: 'reconnected', lane })),
    fc.constant({ type: 'timeout', what: 'x' }),
    fc.constantFrom(...steps).map((step) => ({ type: 'stepDone', step })),
    fc
      .tuple(fc.constantFrom(...steps), fc.boolean())
      .map(([step, neverRan]) => ({ type: 'stepFailed', step, neverRan, error: info })),
    fc.constantFrom(...effects).map((effect) => ({ type: 'effectFailed', effect, error: info })),
    fc
      .tuple(fc.constantFrom(...records), fc.constantFrom('no', 'unknown'))
      .map(([type, written]) => ({ type: 'journalFailed', record: { type }, written, error: info })),
    fc
      .constantFrom('exited', 'signaled', 'unknown')
      .map((kind) => ({ type: 'workloadExited', exit: { kind, value: 1 } })),
  ) as fc.Arbitrary<never>

const sourceEvent: fc.Arbitrary<SourceEvent> = anyEvent(
  ['prepare', 'precopy', 'freeze', 'dump', 'serve'],
  ['detachAndKeepFrozen', 'resumeWorkload', 'killOriginal'],
  ['commit', 'abandoned', 'released', 'kept'],
)
const destinationEvent: fc.Arbitrary<DestinationEvent> = anyEvent(
  ['connect', 'prepare', 'restore', 'thaw', 'postcopy'],
  ['detachSkeleton', 'discardSkeleton', 'reconnect'],
  ['ready', 'commit', 'running', 'abandoned', 'drained', 'done'],
)

function must(condition: boolean): void {
  if (!condition) throw new Error('the rule does not hold')
}

/** Any event in any state, reachable or not: an answer, never an exception. */
t.test('both step functions are total', async (t) => {
  const flags = { connected: fc.boolean(), error: fc.constantFrom(undefined, info) }
  const sourceState: fc.Arbitrary<SourceState> = fc.record({
    ...flags,
    name: fc.constantFrom(...SOURCE_STATES),
    mode: fc.constantFrom('hybrid', 'precopy', 'postcopy'),
    prepared: fc.boolean(),
    originalGone: fc.boolean(),
    journalled: fc.boolean(),
  })
  const destinationState: fc.Arbitrary<DestinationState> = fc.record({
    ...flags,
    name: fc.constantFrom(...DESTINATION_STATES),
    fresh: fc.boolean(),
    settled: fc.boolean(),
  })
  const source = fc.property(sourceState, sourceEvent, (state, event) => {
    const after = stepSource(state, event)
    const types = after.effects.map((effect) => effect.type)
    must(SOURCE_STATES.includes(after.state.name))
    const committed = state.name === 'committed' || state.name === 'serving'
    const abandoned = event.type === 'message' && event.message.type === 'abandoned'
    const notWritten =
      event.type === 'journalFailed' && event.record.type === 'commit' && event.written === 'no'
    if (committed && types.includes('resumeWorkload')) must(abandoned || notWritten)
    if (after.state.name === 'kept') must(!types.includes('resumeWorkload'))
    if (types.includes('killOriginal')) must(types[0] === 'journal' && types[1] === 'killOriginal')
    must(typeof sourceWorkloadAt(after.state) === 'string')
  })
  const destination = fc.property(destinationState, destinationEvent, (state, event) => {
    const after = stepDestination(state, event)
    must(DESTINATION_STATES.includes(after.state.name))
  })
  t.doesNotThrow(() => fc.assert(source, { numRuns, seed }))
  t.doesNotThrow(() => fc.assert(destination, { numRuns, seed }))
})

/** The codec lets no Commit through on its way to the source; the machine must not rely on that. */
const fromNobody = toDestination('commit') as unknown as SourceEvent

/** Before the commit every event that is not on the way forward gives the workload back. */
t.test('an unexpected message aborts before the commit and is only reported after it', async (t) => {
  for (const name of ['preparing', 'precopy', 'freezing', 'dumping', 'awaitingReady'] as const) {
    const state = { ...startSource('hybrid').state, name }
    const after = stepSource(state, fromNobody)
    t.equal(after.state.name, 'resumed', name)
    t.strictSame(
      after.effects.map((effect) => effect.type),
      ['error', 'resumeWorkload', 'send', 'finish'],
    )
    t.equal(sourceWorkloadAt(after.state), 'running-on-source')
  }
  for (const name of ['committed', 'serving'] as const) {
    const state = { ...startSource('hybrid').state, name }
    const after = stepSource(state, fromNobody)
    t.strictSame(after.state, state)
    t.strictSame(
      after.effects.map((effect) => effect.type),
      ['error'],
    )
  }
  for (const name of ['connecting', 'preparing', 'receiving', 'restoring'] as const) {
    const state = { ...startDestination().state, name }
    const after = stepDestination(state, toDestination('released'))
    t.equal(after.state.name, 'discarded', name)
    t.strictSame(
      after.effects.map((effect) => effect.type),
      ['error', 'send', 'discardSkeleton', 'finish'],
    )
  }
})

t.test('frames of a round are taken where the table says, and refused by name elsewhere', async (t) => {
  const taken = (type: Parameters<typeof takesRoundFrame>[1]) =>
    DESTINATION_STATES.map((name) => {
      try {
        return takesRoundFrame({ ...startDestination().state, name }, type) ? name : ''
      } catch (error) {
        t.match(error, {
          code: 'PROTOCOL',
          message: `${type} is not expected by the destination in state ${name}`,
        })
        return `no ${name}`
      }
    }).filter((answer) => answer !== '')
  const refused = (...names: string[]) => names.map((name) => `no ${name}`)
  const round = [
    ...refused('connecting', 'preparing'),
    'receiving',
    ...refused('restoring', 'ready', 'committed', 'running', 'drained', 'done', 'lost'),
  ]
  for (const type of ['image', 'ghost', 'ghostData', 'ghostGone', 'roundBegin', 'roundEnd'] as const)
    t.strictSame(taken(type), round, type)
})

t.test('the source goes forward as its table says', async (t) => {
  let { state, effects } = startSource('hybrid')
  const next = (event: SourceEvent) => {
    const after = stepSource(state, event)
    state = after.state
    effects = after.effects
    return [state.name, ...effects.map((e) => (e.type === 'send' ? `send ${e.message.type}` : e.type))]
  }
  t.strictSame(effects, [{ type: 'startPrepare' }])
  t.strictSame(next({ type: 'connected' }), ['preparing'])
  t.strictSame(next({ type: 'stepDone', step: 'prepare' }), ['preparing', 'send begin'])
  t.strictSame(next(toSource('clockRequest')), ['preparing', 'deliver'])
  t.strictSame(next(toSource('prepared')), ['precopy', 'startPrecopy'])
  t.strictSame(next(toSource('roundApplied')), ['precopy', 'deliver'])
  t.strictSame(next({ type: 'stepDone', step: 'precopy' }), ['freezing', 'freezeWorkload'])
  t.strictSame(next({ type: 'stepDone', step: 'freeze' }), ['dumping', 'startDump'])
  t.strictSame(next({ type: 'stepDone', step: 'dump' }), [
    'awaitingReady',
    'send dumpEnd',
    'detachAndKeepFrozen',
  ])
  t.strictSame(next(toSource('ready')), ['committed', 'journal', 'send commit', 'startServing'])
  t.equal(sourceWorkloadAt(state), 'handed-over')
  t.strictSame(next({ type: 'cancel' }), ['committed', 'error'])
  t.strictSame(next({ type: 'laneLost', lane: 'control' }), ['committed'])
  t.strictSame(next(toSource('running')), ['serving'])
  t.strictSame(next(toSource('drained')), ['released', 'journal', 'killOriginal', 'send released', 'finish'])
  t.strictSame(next(toSource('drained')), ['released', 'send released'])
})

t.test('an original that is killed after the commit is not served from again and again', async (t) => {
  let state: SourceState = { ...startSource('hybrid').state, name: 'serving' }
  const next = (event: SourceEvent) => {
    const after = stepSource(state, event)
    state = after.state
    return after.effects.map((e) => (e.type === 'send' ? `send ${e.message.type}` : e.type))
  }
  const failed = { type: 'stepFailed', step: 'serve', error: { code: 'KERNEL', message: 'ESRCH' } } as const
  t.strictSame(next(failed), ['error', 'restart'])
  t.strictSame(next({ type: 'workloadExited', exit: { kind: 'signaled', value: 9 } }), [
    'error',
    'send failed',
  ])
  t.strictSame(next(failed), ['error'])
  t.strictSame(next({ type: 'laneLost', lane: 'control' }), [])
  t.strictSame(next({ type: 'reconnected', lane: 'bulk', index: 0 }), [])
  t.strictSame(next({ type: 'reconnected', lane: 'control' }), ['send failed'])
  t.strictSame(next(toSource('drained')), ['journal', 'killOriginal', 'send released', 'finish'])
})

t.test('after a proof that failed the original is never killed or resumed', async (t) => {
  const drained: SourceEvent = { type: 'message', message: { type: 'drained', error: info } }
  const names = (after: ReturnType<typeof stepSource>) => after.effects.map(({ type }) => type)
  for (const name of ['committed', 'serving'] as const) {
    const state: SourceState = { ...startSource('hybrid').state, name }
    const kept = stepSource(state, drained)
    t.match(kept.state, { name: 'kept', error: info })
    t.strictSame(names(kept), ['journal', 'send', 'finish'])
    t.match(stepSource(kept.state, drained).effects, [{ type: 'send', message: { type: 'kept' } }])
    const dead = stepSource({ ...state, originalGone: true }, drained)
    t.strictSame(names(dead), ['journal', 'killOriginal', 'send', 'finish'], 'its cgroup is removed')
  }
})

t.test('mode postcopy has no rounds', async (t) => {
  const state = { ...startSource('postcopy').state, prepared: true, connected: true }
  const after = stepSource(state, toSource('prepared'))
  t.equal(after.state.name, 'freezing')
  t.strictSame(after.effects, [{ type: 'freezeWorkload' }])
})

t.test('what a restart makes of a journal', async (t) => {
  const source = (...types: string[]) => sourceStateFromJournal(types.map((type) => ({ type })))
  const destination = (...types: string[]) => destinationStateFromJournal(types.map((type) => ({ type })))
  const shown = (after: { state: { name: string }; effects: readonly { type: string }[] }) =>
    [after.state.name, ...after.effects.map((effect) => effect.type)].join(' ')
  t.equal(shown(source()), 'resumed resumeWorkload finish')
  t.equal(shown(source('somethingNew')), 'resumed resumeWorkload finish')
  t.equal(shown(source('commit')), 'committed detachAndKeepFrozen startServing')
  t.equal(shown(source('commit', 'released')), 'released killOriginal finish')
  t.equal(shown(source('commit', 'kept')), 'kept finish')
  t.equal(shown(source('commit', 'abandoned')), 'abandonedBack resumeWorkload finish')
  t.equal(shown(destination()), 'discarded discardSkeleton finish')
  t.equal(shown(destination('ready')), 'abandoned journal send discardSkeleton reconnect')
  t.equal(shown(destination('ready', 'done')), 'discarded discardSkeleton finish')
  t.equal(shown(destination('ready', 'abandoned')), 'abandoned discardSkeleton reconnect')
  t.equal(shown(destination('ready', 'abandoned', 'done')), 'abandoned discardSkeleton finish')
  t.equal(shown(destination('ready', 'commit')), 'committed thawSkeleton reconnect reconnect reconnect')
  t.equal(
    shown(destination('ready', 'commit', 'running')),
    'committed thawSkeleton reconnect reconnect reconnect',
  )
  t.equal(shown(destination('ready', 'commit', 'abandoned')), 'abandoned discardSkeleton reconnect')
  t.equal(shown(destination('ready', 'commit', 'drained')), 'drained reconnect')
  t.equal(shown(destination('ready', 'commit', 'drained', 'done')), 'done finish')
  const failed = [{ type: 'ready' }, { type: 'commit' }, { type: 'drained', error: info }]
  t.match(destinationStateFromJournal(failed).state, { name: 'drained', error: info })
  t.match(destinationStateFromJournal([...failed, { type: 'done' }]).effects, [
    { type: 'finish', outcome: 'kept', error: info },
  ])
  t.match(sourceStateFromJournal([{ type: 'commit' }, { type: 'kept', error: info }]), {
    state: { name: 'kept', error: info },
    effects: [{ type: 'finish', outcome: 'kept', error: info }],
  })
})

t.test('a workload that a restart finds killed is lost, unless it certainly ran', async (t) => {
  const found = (...types: string[]) => destinationStateFromJournal(types.map((type) => ({ type }))).state
  const killed: DestinationEvent = { type: 'workloadExited', exit: { kind: 'signaled', value: 9 } }
  const unknown: DestinationEvent = { type: 'workloadExited', exit: { kind: 'unknown' } }
  const thawed: DestinationEvent = { type: 'stepDone', step: 'thaw' }
  t.equal(stepDestination(found('ready', 'commit'), killed).state.name, 'lost')
  t.equal(stepDestination(found('ready', 'commit', 'running'), unknown).state.name, 'lost')
  const committed = stepDestination(found('ready', 'commit', 'running'), killed)
  t.match(committed.state, { name: 'committed', exit: { kind: 'signaled', value: 9 } })
  const running = stepDestination(committed.state, thawed)
  t.match(running.state, { name: 'running', exit: { kind: 'signaled', value: 9 } })
  t.same(
    running.effects.map(({ type }) => type),
    ['send', 'startPostcopy'],
    'it is in the journal already',
  )
  const drained = stepDestination(running.state, { type: 'stepDone', step: 'postcopy' })
  t.match(drained.effects[0], { record: { type: 'drained', exit: { kind: 'signaled', value: 9 } } })

  const first = stepDestination(found('ready', 'commit'), thawed)
  t.match(first.effects, [{}, { type: 'startPostcopy' }, { record: { type: 'running' }, unsynced: true }])
  const failed: DestinationEvent = {
    type: 'journalFailed',
    record: { type: 'running' },
    written: 'no',
    error: info,
  }
  t.strictSame(
    stepDestination(first.state, failed).state,
    first.state,
    'and not being written is no reason to end',
  )
})

t.test(
  'the destination: a thaw that never ran gives the workload back, an unclear one does not',
  async (t) => {
    const ready: DestinationState = { name: 'ready', connected: true, fresh: false, settled: false }
    const committed = stepDestination(ready, toDestination('commit')).state
    const failed = (neverRan: boolean): DestinationEvent => ({
      type: 'stepFailed',
      step: 'thaw',
      error: info,
      neverRan,
    })
    t.equal(stepDestination(committed, failed(true)).state.name, 'abandoned')
    t.equal(stepDestination(committed, failed(false)).state.name, 'committed')
    const found = destinationStateFromJournal([{ type: 'ready' }, { type: 'commit' }]).state
    t.equal(
      stepDestination(found, failed(true)).state.name,
      'committed',
      'an earlier worker may have thawed it',
    )
  },
)

t.test('"failed" is never taken for Abandoned, "unknown" neither', async (t) => {
  const committed: SourceState = { ...startSource('hybrid').state, name: 'committed' }
  const events: CommonEvent<never, never, never, ErrorMessage>[] = [
    { type: 'message', message: { type: 'failed', error: info } },
    { type: 'message', message: { type: 'cancel', error: info } },
    { type: 'peerUnknown' },
    { type: 'timeout', what: 'nothing heard' },
  ]
  for (const event of events) t.strictSame(stepSource(committed, event).state, committed, event.type)
})
