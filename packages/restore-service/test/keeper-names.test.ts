import t from 'tap'
import { childNameOf, heldSpaces, logNameOf, nameOf, uffdNameOf } from '../src/lazy/keeper-names.js'

t.test('parents before children, whatever the order in which they are held', async (t) => {
  const names = ['as1', 'as1.1', 'as1.1.1', 'as1.2', 'as1.10', 'as2', 'as2.1', 'as10']
  const held = names.flatMap((name) => [uffdNameOf(name), logNameOf(name)])
  for (const order of [held, held.toReversed(), held.toSorted()]) {
    t.same(
      heldSpaces(order).map(({ name }) => name),
      names,
    )
  }
})

t.test('what is held of each', async (t) => {
  const child = childNameOf(nameOf(7), 3)
  t.same(heldSpaces(['as7.uffd', 'as7.log', uffdNameOf(child), 'as8.log']), [
    { name: 'as7', asId: 7, isRoot: true, hasUffd: true, hasLog: true },
    { name: 'as7.3', asId: 7, isRoot: false, hasUffd: true, hasLog: false },
    { name: 'as8', asId: 8, isRoot: true, hasUffd: false, hasLog: true },
  ])
})

t.test('names of others, and names that are nearly right', async (t) => {
  const others = ['heir', 'as', 'as1', 'as0.uffd', 'as01.uffd', 'as1..uffd', 'as1.0.uffd', 'as1.02.log']
  const more = [
    'as1.uffd.log',
    'as1.x.uffd',
    'as1.uffd ',
    ' as1.uffd',
    'As1.uffd',
    'uffd',
    'uffd.log',
    'as1.2',
  ]
  t.same(heldSpaces([...others, ...more, '']), [])
})
