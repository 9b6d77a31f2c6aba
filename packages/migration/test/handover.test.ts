import fc from 'fast-check'
import t from 'tap'
import {
  type DestinationEffect,
  type Mode,
  type SourceEffect,
  type SourceEvent,
  stepSource,
  type Transition,
} from '../src/index.js'
import { type Action, type ActionName, type Mutation, Violation, World } from './world.js'

// FC_SEED replays a failure that was printed, FC_RUNS makes the search longer.
const seed = process.env.FC_SEED === undefined ? undefined : Number(process.env.FC_SEED)
const numRuns = Number(process.env.FC_RUNS ?? 8000)

/** Mostly progress, so that histories get far; faults anywhere. */
const WEIGHTS: Record<ActionName, number> = {
  source: 60,
  destination: 60,
  stepEnds: 40,
  toSource: 25,
  toDestination: 25,
  dial: 15,
  break: 3,
  crashSource: 3,
  crashDestination: 3,
  restartSource: 8,
  restartDestination: 8,
  cancelSource: 1,
  cancelDestination: 1,
  timeoutSource: 1,
  timeoutDestination: 1,
  unknownSource: 1,
  unknownDestination: 1,
  stepFails: 1,
  proofFails: 1,
  journalFault: 2,
  effectFault: 1,
  skeletonDies: 2,
  workloadExits: 2,
  hostRestarts: 0,
}

const actionOf = (weights: Record<ActionName, number>): fc.Arbitrary<Action> =>
  fc.record({
    name: fc.oneof(
      ...Object.entries(weights).map(([name, weight]) => ({
        arbitrary: fc.constant(name as ActionName),
        weight,
      })),
    ),
    n: fc.nat(11),
  })

/** A fault-free stretch first, of any length, so that every state is where the trouble starts equally often. */
const historyOf = (weights: Record<ActionName, number>) =>
  fc.record({
    mode: fc.constantFrom<Mode>('hybrid', 'precopy', 'postcopy'),
    calm: fc.nat(50),
    actions: fc.array(actionOf(weights), { maxLength: 120, size: 'max' }),
  })
const history = historyOf(WEIGHTS)

const CALM: ActionName[] = ['dial', 'source', 'destination', 'toSource', 'toDestination', 'stepEnds']

function play({ mode, calm, actions }: { mode: Mode; calm: number; actions: Action[] }, mutation?: Mutation) {
  const world = new World(mode, mutation)
  try {
    for (let i = 0; i < calm; i++) for (const name of CALM) if (world.act({ name, n: 0 })) break
    for (const one of actions) world.act(one)
    world.heal()
  } catch (error) {
    if (error instanceof Violation) error.message += `\n  ${world.trace.join('\n  ')}`
    throw error
  }
  return world
}

t.test('without faults the workload moves', async (t) => {
  for (const mode of ['hybrid', 'precopy', 'postcopy'] as const) {
    const world = play({ mode, calm: 0, actions: [] })
    t.equal(world.original, 'killed')
    t.equal(world.skeleton, 'running')
    t.strictSame(world.source.journal, [{ type: 'commit' }, { type: 'released' }])
    t.strictSame(
      world.destination.journal.map((record) => record.type),
      ['ready', 'commit', 'running', 'drained', 'done'],
    )
    t.strictSame(world.source.finished, ['migrated'])
    t.strictSame(world.destination.finished, ['migrated'])
  }
})

t.test('a proof that fails comes after the resume: the original is kept', async (t) => {
  for (const mode of ['hybrid', 'precopy', 'postcopy'] as const) {
    const world = play({ mode, calm: 0, actions: [{ name: 'proofFails', n: 0 }] })
    t.equal(world.original, 'frozen')
    t.equal(world.skeleton, 'running')
    t.match(world.source.journal, [{ type: 'commit' }, { type: 'kept', error: { code: 'VERIFY_FAILED' } }])
    t.strictSame(
      world.destination.journal.map((record) => record.type),
      ['ready', 'commit', 'running', 'drained', 'done'],
    )
    t.match(world.destination.journal[3], { error: { code: 'VERIFY_FAILED' } })
    t.strictSame(world.source.finished, ['kept'])
    t.strictSame(world.destination.finished, ['kept'])
  }
})

t.test('whatever fails, exactly one side runs the workload, and it is never lost', async (t) => {
  const ends = new Map<string, number>()
  const result = fc.check(
    fc.property(history, (one) => {
      const world = play(one)
      const end = `${world.source.state.name}/${world.destination.state.name}`
      ends.set(end, (ends.get(end) ?? 0) + 1)
    }),
    { numRuns, seed },
  )
  if (result.failed) t.comment(`FC_SEED=${result.seed} replays this\n${result.errorInstance}`)
  t.notOk(result.failed, fc.defaultReportMessage(result) ?? 'no counterexample')
  t.comment(`ends reached: ${JSON.stringify(Object.fromEntries(ends))}`)
  for (const end of [
    'released/done',
    'kept/done',
    'resumed/discarded',
    'resumed/abandoned',
    'abandonedBack/abandoned',
  ]) {
    t.ok((ends.get(end) ?? 0) > numRuns / 500, `${end} was reached often enough to mean something`)
  }
})

t.test('the destination machine restarts: still never twice, and the original is there', async (t) => {
  let decided = 0
  const result = fc.check(
    fc.property(historyOf({ ...WEIGHTS, hostRestarts: 4 }), (one) => {
      const world = play(one)
      if (world.everRan && world.original === 'running') decided++
    }),
    { numRuns, seed },
  )
  if (result.failed) t.comment(`FC_SEED=${result.seed} replays this\n${result.errorInstance}`)
  t.notOk(result.failed, fc.defaultReportMessage(result) ?? 'no counterexample')
  t.ok(decided > numRuns / 500, 'the operator had to decide often enough to mean something')
})

t.test('a crash of either side after every single action', async (t) => {
  for (const side of ['Source', 'Destination'] as const) {
    const failures: string[] = []
    for (let calm = 0; calm < 60; calm++) {
      for (const late of [0, 4, 12]) {
        const wait: Action[] = Array.from({ length: late }, (_, i) => ({
          name: (['source', 'destination', 'toSource', 'toDestination'] as const)[i % 4],
          n: 0,
        }))
        const actions: Action[] = [{ name: `crash${side}`, n: 0 }, ...wait, { name: `restart${side}`, n: 0 }]
        try {
          play({ mode: 'hybrid', calm, actions })
        } catch (error) {
          failures.push(`after ${calm} actions, back after ${late}: ${error}`)
        }
      }
    }
    t.strictSame(failures, [], side)
  }
})

type Rule = { name: string; mutation: Mutation }
const without = <S, E extends { type: string }>(after: Transition<S, E>, drop: (effect: E) => boolean) => ({
  state: after.state,
  effects: after.effects.filter((effect) => !drop(effect)),
})
const journals = (type: string) => (effect: SourceEffect | DestinationEffect) =>
  effect.type === 'journal' && effect.record.type === type
const swapped = <S, E extends { type: string }>(after: Transition<S, E>, a: string, b: string) => {
  const effects = [...after.effects]
  const [i, j] = [effects.findIndex((e) => e.type === a), effects.findIndex((e) => e.type === b)]
  if (i >= 0 && j >= 0) [effects[i], effects[j]] = [effects[j], effects[i]]
  return { state: after.state, effects }
}

const BROKEN: Rule[] = [
  {
    name: 'the source takes every Drained for a proof',
    mutation: {
      source: (before, event, after) =>
        after.state.name === 'kept' && before.name !== 'kept'
          ? stepSource(before, { ...event, message: { type: 'drained' } } as SourceEvent)
          : after,
    },
  },
  {
    name: 'a restarted destination forgets that the proof failed',
    mutation: {
      destinationRestart: (after) =>
        after.state.name === 'drained' ? { ...after, state: { ...after.state, error: undefined } } : after,
    },
  },
  {
    name: 'the source sends Commit before it is in the journal',
    mutation: {
      source: (_, __, after) =>
        after.state.name === 'committed' ? swapped(after, 'journal', 'send') : after,
    },
  },
  {
    name: 'the source leaves the freeze to ptrace',
    mutation: { source: (_, __, after) => without(after, (e) => e.type === 'detachAndKeepFrozen') },
  },
  {
    name: 'the source takes a lost connection after the commit for a failure',
    mutation: {
      source: (before, event, after) =>
        before.name === 'committed' && event.type === 'laneLost'
          ? { state: { ...before, name: 'resumed' }, effects: [{ type: 'resumeWorkload' }] }
          : after,
    },
  },
  {
    name: 'the source takes "unknown migration" for Abandoned',
    mutation: {
      source: (before, event, after) =>
        before.name === 'committed' && event.type === 'peerUnknown'
          ? { state: { ...before, name: 'abandonedBack' }, effects: [{ type: 'resumeWorkload' }] }
          : after,
    },
  },
  {
    name: 'the source lets go when the destination says Running',
    mutation: {
      source: (_, event, after) =>
        event.type === 'message' && event.message.type === 'running' && after.state.name === 'serving'
          ? { state: after.state, effects: [{ type: 'killOriginal' }] }
          : after,
    },
  },
  {
    name: 'the source acknowledges Abandoned without a record',
    mutation: { source: (_, __, after) => without(after, journals('abandoned')) },
  },
  {
    name: 'the destination thaws before Commit is in the journal',
    mutation: { destination: (_, __, after) => swapped(after, 'journal', 'thawSkeleton') },
  },
  {
    name: 'the destination detaches from the skeleton after the record',
    mutation: { destination: (_, __, after) => swapped(after, 'detachSkeleton', 'journal') },
  },
  {
    name: 'the destination says Ready without a record',
    mutation: { destination: (_, __, after) => without(after, journals('ready')) },
  },
  {
    name: 'the destination says Drained without a record',
    mutation: { destination: (_, __, after) => without(after, journals('drained')) },
  },
  {
    name: 'the destination keeps the skeleton and accepts Commit after Abandoned',
    mutation: {
      destination: (before, event, after) =>
        before.name === 'abandoned' && event.type === 'message' && event.message.type === 'commit'
          ? { state: { ...before, name: 'committed' }, effects: [{ type: 'thawSkeleton' }] }
          : without(after, (e) => e.type === 'discardSkeleton'),
    },
  },
  {
    name: 'a restarted destination discards a committed skeleton',
    mutation: {
      destinationRestart: (after) =>
        after.state.name === 'committed' ? { ...after, effects: [{ type: 'discardSkeleton' }] } : after,
    },
  },
  {
    name: 'the destination takes the loss of the source for the end',
    mutation: {
      destination: (before, event, after) =>
        before.name === 'running' && event.type === 'laneLost'
          ? { state: { ...before, name: 'discarded' }, effects: [{ type: 'discardSkeleton' }] }
          : after,
    },
  },
]

t.test('the property notices every broken rule', async (t) => {
  for (const { name, mutation } of BROKEN) {
    const result = fc.check(
      fc.property(history, (one) => {
        play(one, mutation)
      }),
      // A fixed seed: this tests the test.
      { numRuns, seed: seed ?? 2016, endOnFailure: true },
    )
    t.ok(result.failed, `${name}: found after ${result.numRuns} histories`)
    t.ok(result.errorInstance instanceof Violation, String(result.errorInstance).split('\n')[0])
  }
})
