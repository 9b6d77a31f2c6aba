import { createLogger } from '@pageferry/base'
import { fds } from '@pageferry/kernel'
import { LazyMap, PageSet } from '@pageferry/memory'
import t from 'tap'
import { EventJournal } from '../src/event-journal.js'
import { adoptSpaces, type Holder } from '../src/lazy-spaces.js'

const stretches = (lazy: LazyMap): number[][] => {
  const all: number[][] = []
  lazy.forEachPending((page, source, nr) => all.push([page, source, nr]))
  return all
}

t.test('the snapshot is the address space as it was, with what has moved', async (t) => {
  const lazy = new LazyMap(PageSet.of([0x100, 50], [0x200, 8]))
  lazy.remap(0x110, 0x900, 16)
  lazy.remove(0x205, 2)
  const journal = EventJournal.create(lazy, 3)
  t.teardown(() => journal.close())
  const found = EventJournal.open(fds.dup(journal.fd))
  t.teardown(() => found.journal.close())
  t.same(stretches(found.lazy), stretches(lazy))
  t.equal(found.lazy.lookup(0x905), 0x115)
  t.equal(found.lazy.lookup(0x110), 'zero')
  t.same(found.forks, [])
  t.equal(found.journal.forks, 3)
  t.equal(found.journal.isFull, false)
})

t.test('an empty address space', async (t) => {
  const journal = EventJournal.create(new LazyMap(new PageSet()))
  t.ok(EventJournal.open(journal.fd).lazy.isDrained)
  journal.close()
})

t.test('nothing is held: everything had been drained', async (t) => {
  const dropped: string[] = []
  const keeper: Holder = {
    list: () => ['uffd.log', 'uffd.2.log', 'other'],
    drop: (name) => void dropped.push(name),
    fetch: () => t.fail('nothing is fetched') as never,
    hold: () => t.fail('nothing is held'),
  }
  t.same(adoptSpaces(keeper, createLogger('test')), [])
  t.same(dropped.sort(), ['uffd.2.log', 'uffd.log'], 'journals without their userfaultfd are dropped')
})
