import { closeSync } from 'node:fs'
import { createLogger } from '@pageferry/base'
import { eventJournal, fds, uffd } from '@pageferry/kernel'
import { LazyMap, type MapEvent, PageSet } from '@pageferry/pages'
import t from 'tap'
import type { Holder } from '../src/lazy/address-space.js'
import { adoptSpaces } from '../src/lazy/adopt.js'
import { EventJournal } from '../src/lazy/journal.js'

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

t.test('events that wait for their order are in the next journal', async (t) => {
  const unsettled: MapEvent[] = [
    { type: 'remap', from: 0x100, to: 0x300, nr: 4 },
    { type: 'unmap', first: 0x300, nr: 4 },
    { type: 'remove', first: 0x102, nr: 1 },
  ]
  const journal = EventJournal.create(new LazyMap(PageSet.of([0x100, 4])), 2, unsettled)
  t.teardown(() => journal.close())
  forkIsRead(journal, [33])
  const found = EventJournal.open(fds.dup(journal.fd))
  t.teardown(() => found.journal.close())
  t.same(found.unsettled, unsettled)
  t.same(stretches(found.lazy), [[0x100, 0x100, 4]])
  t.match(found.forks, [{ ordinal: 3, unsettled }], 'and are known to the child')
})

t.test('an empty address space', async (t) => {
  const journal = EventJournal.create(new LazyMap(new PageSet()))
  t.ok(EventJournal.open(journal.fd).lazy.isDrained)
  journal.close()
})

t.test('nothing is held: everything had been drained', async (t) => {
  const dropped: string[] = []
  const keeper: Holder = {
    list: () => ['as1.log', 'as1.2.log', 'other'],
    drop: (name) => void dropped.push(name),
    fetch: () => t.fail('nothing is fetched') as never,
    hold: () => t.fail('nothing is held'),
  }
  t.same([...adoptSpaces(keeper, null, createLogger('test'))], [])
  t.same(dropped.sort(), ['as1.2.log', 'as1.log'], 'journals without their userfaultfd are dropped')
})

/** As the kernel writes it where the reader lets it read to: struct uffd_msg in the journal's staging. */
function forkIsRead(journal: EventJournal, numbers: number[]): void {
  const area = fds.mapShared(journal.fd, eventJournal.headBytes)
  for (const [i, fd] of numbers.entries()) {
    const bytes = Buffer.alloc(eventJournal.eventBytes)
    bytes[0] = 0x13 // UFFD_EVENT_FORK
    bytes.writeUInt32LE(fd, 8)
    area.set(bytes, 2048 + i * eventJournal.eventBytes)
  }
}

t.test('forks that were read and not given to the keeper are told from the others', async (t) => {
  const journal = EventJournal.create(new LazyMap(PageSet.of([0x100, 4])), 2)
  t.teardown(() => journal.close())
  forkIsRead(journal, [33])
  t.match(EventJournal.open(fds.dup(journal.fd)).forks, [{ ordinal: 3, fd: 33, isSettled: false }])
  t.equal(journal.nextFork(), 3)
  journal.settleForks()
  forkIsRead(journal, [33, 34])
  const { forks } = EventJournal.open(fds.dup(journal.fd))
  t.match(
    forks,
    [
      { ordinal: 3, fd: 33, isSettled: true },
      { ordinal: 4, fd: 33, isSettled: false },
      { ordinal: 5, fd: 34, isSettled: false },
    ],
    'the number of a descriptor that was closed comes again',
  )
})

/** One that stands for a userfaultfd of a child. */
function someUffd(): number {
  const fd = uffd.create(0o2000000 | 0o4000)
  uffd.api(fd, 0n)
  return fd
}

t.test('the userfaultfd of a child that only the dead worker had comes from its heir', async (t) => {
  const journal = EventJournal.create(new LazyMap(PageSet.of([0x100, 4])))
  forkIsRead(journal, [33, 34])
  const held = new Map([
    ['as1.uffd', someUffd()],
    ['as1.log', journal.fd],
  ])
  const keeper: Holder = {
    list: () => [...held.keys()],
    fetch: (name) => fds.dup(held.get(name) as number),
    hold: (name, fd) => void held.set(name, fds.dup(fd)),
    drop: (name) => void held.delete(name),
  }
  const rescued = someUffd()
  const heir = { takeUserfaultfd: (fd: number) => (fd === 33 ? rescued : undefined) }
  const families = adoptSpaces(keeper, heir, createLogger('test', 'silent'))
  t.same([...families.keys()], [1])
  const spaces = families.get(1) ?? []
  t.same(
    spaces.map(({ name }) => name),
    ['as1', 'as1.1'],
    'the other child is lost, and that is said',
  )
  t.equal(spaces[1].uffd, rescued)
  t.same(stretches(spaces[1].lazy), [[0x100, 0x100, 4]])
  t.same([...held.keys()], ['as1.uffd', 'as1.log', 'as1.1.uffd', 'as1.1.log'])

  const again = adoptSpaces(keeper, null, createLogger('test', 'silent'))
  t.same(
    again.get(1)?.map(({ name }) => name),
    ['as1', 'as1.1'],
    'the next successor needs no heir',
  )
  for (const fd of held.values()) closeSync(fd)
})
