import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { RecordFile } from '@pageferry/base'
import t, { type Test } from 'tap'
import { type Hold, Holds } from '../src/worker/holds.js'

/** Notes what was undone, in its order. `fails`: names that cannot be undone yet. */
function kinds(...names: string[]) {
  const undone: string[] = []
  const fails = new Set<string>()
  const note = (how: string, name: string, what: unknown) => {
    if (fails.has(name)) throw new Error(`${name} stays`)
    undone.push(`${how} ${name} ${what}`)
  }
  const order = names.map(
    (name): Hold<{ at: number }, string> => ({
      name,
      release: (held) => note('release', name, held),
      recover: ({ at }) => note('recover', name, at),
    }),
  )
  return { order, undone, fails }
}

function pathOf(t: Test): string {
  const dir = mkdtempSync(join(tmpdir(), 'pageferry-holds-'))
  t.teardown(() => rmSync(dir, { recursive: true }))
  return join(dir, 'holds')
}

t.test('undone in reverse order of the list, whatever the order of announcing', async (t) => {
  const { order, undone } = kinds('made', 'stopped', 'frozen')
  const [made, stopped, frozen] = order
  const holds = new Holds(pathOf(t), order)
  for (const hold of [frozen, made, stopped]) holds.announce(hold, { at: 1 })
  holds.announce(stopped, { at: 2 }, 2)
  for (const hold of order)
    t.equal(
      holds.take(hold, ({ at }) => `own ${at}`),
      'own 1',
    )
  holds.take(stopped, ({ at }) => `own ${at}`, 2)
  holds.releaseAll()
  t.same(undone, [
    'release frozen own 1',
    'release stopped own 2',
    'release stopped own 1',
    'release made own 1',
  ])
  holds.releaseAll()
  t.equal(undone.length, 4, 'once')
  holds.close()
})

t.test('nothing is taken that is not on record', async (t) => {
  const { order, undone } = kinds('made', 'frozen')
  const [made, frozen] = order
  const holds = new Holds(pathOf(t), order)
  let acts = 0
  t.throws(() => holds.take(made, () => `${acts++}`), { code: 'INTERNAL' })
  t.equal(acts, 0, 'not even done')
  holds.announce(made, { at: 1 })
  t.throws(() =>
    holds.take(made, () => {
      throw new Error('the act fails')
    }),
  )
  holds.releaseAll()
  t.same(undone, [], 'what failed was not done')
  holds.take(made, () => 'own')
  t.throws(() => holds.take(made, () => 'again'), { code: 'INTERNAL' })
  holds.announce(frozen, { at: 1 })
  holds.take(frozen, () => 'own')
  holds.handOver(frozen)
  holds.release(made)
  holds.release(made)
  holds.releaseAll()
  t.same(undone, ['release made own'], 'what was handed over is no longer ours to undo')
  holds.close()
})

t.test('one that cannot be undone keeps no other from it, and is tried again', async (t) => {
  const { order, undone, fails } = kinds('made', 'stopped', 'frozen')
  const path = pathOf(t)
  const holds = new Holds(path, order)
  for (const hold of order) {
    holds.announce(hold, { at: 1 })
    holds.take(hold, () => 'own')
  }
  fails.add('stopped')
  t.throws(() => holds.releaseAll(), { message: 'stopped stays' })
  t.same(undone, ['release frozen own', 'release made own'])
  t.ok(new Holds(path, order).facts(order[1]), 'a successor would find it')
  fails.clear()
  holds.releaseAll()
  t.same(undone.slice(2), ['release stopped own'])
})

t.test('kill -9 at any moment: a successor finds all that may have been done', async (t) => {
  const { order, undone } = kinds('made', 'stopped', 'frozen')
  const [made, stopped, frozen] = order
  const path = pathOf(t)
  const first = new Holds(path, order)
  first.announce(made, { at: 1 })
  first.announce(stopped, { at: 2 })
  first.announce(stopped, { at: 3 })
  first.announce(frozen, { at: 4 })
  first.take(made, () => 'own')

  const second = new Holds(path, order)
  t.same([second.facts(made), second.facts(stopped)], [{ at: 1 }, { at: 3 }], 'the last word counts')
  t.equal(
    second.take(frozen, ({ at }) => `taken over ${at}`),
    'taken over 4',
  )
  second.release(stopped)
  t.same(undone, [], 'released is only what this worker took')
  second.releaseAll()
  t.same(undone, ['release frozen taken over 4', 'recover stopped 3', 'recover made 1'])

  const third = new Holds(path, order)
  third.releaseAll()
  t.equal(undone.length, 3, 'everything had been undone')
  t.equal(third.facts(made), undefined)
})

t.test('a name that is unknown is a defect', async (t) => {
  const { order } = kinds('made')
  const path = pathOf(t)
  const file = RecordFile.open(path)
  file.append({ hold: 'other', key: 0, facts: {} })
  file.close()
  t.throws(() => new Holds(path, order), { code: 'INTERNAL' })
})
