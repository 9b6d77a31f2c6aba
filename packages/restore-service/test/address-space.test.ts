import { closeSync, fstatSync } from 'node:fs'
import { addressOf, pageBytes, pageOf } from '@pageferry/base'
import { fds, uffd } from '@pageferry/kernel'
import { LazyMap, type MapEvent, PageSet } from '@pageferry/pages'
import { Child } from '@pageferry/testing/child'
import t, { type Test } from 'tap'
import { AddressSpace, type Holder } from '../src/lazy/address-space.js'
import { holdSkeleton } from '../src/lazy/adopt.js'
import { EventJournal } from '../src/lazy/journal.js'

const nrPages = 32
const features =
  uffd.UFFD_FEATURE_EVENT_FORK |
  uffd.UFFD_FEATURE_EVENT_REMAP |
  uffd.UFFD_FEATURE_EVENT_REMOVE |
  uffd.UFFD_FEATURE_EVENT_UNMAP

class Keeper implements Holder {
  readonly held = new Map<string, number>()
  list = () => [...this.held.keys()]
  fetch = (name: string) => fds.dup(this.held.get(name) as number)
  drop = (name: string) => {
    closeSync(this.held.get(name) as number)
    this.held.delete(name)
  }
  hold = (name: string, fd: number) => {
    if (this.held.has(name)) this.drop(name)
    this.held.set(name, fds.dup(fd))
  }
}

/** A process whose memory is all still to come, and what a successor would find. */
function served(test: Test, unsettledOf: (first: number) => MapEvent[] = () => []) {
  const child = new Child(nrPages)
  uffd.api(child.uffd, features)
  uffd.register(child.uffd, child.area, BigInt(nrPages * pageBytes), uffd.UFFDIO_REGISTER_MODE_MISSING)
  const first = pageOf(child.area)
  const keeper = new Keeper()
  const lazy = new LazyMap(PageSet.of([first, nrPages]))
  const uffdFd = fds.dup(child.uffd)
  holdSkeleton(keeper, 1, uffdFd)
  const space = AddressSpace.create(keeper, 1, uffdFd, { lazy, unsettled: unsettledOf(first) })
  test.teardown(async () => {
    space.release()
    await child.end()
  })
  const successor = () => {
    const found = EventJournal.open(keeper.fetch('as1.log'))
    found.journal.close()
    return found
  }
  return { child, first, keeper, space, successor }
}

/** Whether a change was read. */
function read(space: AddressSpace): boolean {
  const before = space.unsettled.length
  space.read(() => {
    throw new Error('a fork')
  })
  return space.unsettled.length > before
}

function readSome(space: AddressSpace): void {
  for (let turn = 0; turn < 1_000_000; turn++) if (read(space)) return
  throw new Error('no event')
}

const sourcesOf = (lazy: LazyMap, first: number, pages: number[]) =>
  pages.map((page) => {
    const source = lazy.lookup(page)
    return source === 'zero' ? source : source - first
  })

/** A process that moves four of its pages, and has yet to say that their old place is unmapped. */
function moving(test: Test) {
  for (let attempt = 0; attempt < 50; attempt++) {
    const process = served(test)
    process.child.start('m', addressOf(process.first + 8), BigInt(4 * pageBytes))
    readSome(process.space)
    // The thread goes on when it has been read, and one read takes both if the reader is held up in between.
    if (process.space.unsettled.length === 1) return process
  }
  throw new Error('both events at once every time')
}

t.test('a move is entered when its thread has gone on, and not before', async (t) => {
  const { child, first, space, successor } = moving(t)
  t.match(space.unsettled, [{ type: 'remap', from: first + 8, nr: 4 }])
  const { to } = space.unsettled[0] as { to: number }
  t.equal(space.settle(), false, 'the unmapping of the old place is still to come')
  t.same(sourcesOf(space.lazy, first, [first + 8, to]), [8, 'zero'])
  t.match(successor().unsettled, [{ type: 'remap' }])
  t.same(sourcesOf(successor().lazy, first, [first + 8, to]), [8, 'zero'])
  let turns = 0
  while (!space.settle() && turns++ < 1_000_000) read(space)
  t.same(space.unsettled, [])
  t.same(sourcesOf(space.lazy, first, [first + 8, to, to + 3, first + 12]), ['zero', 8, 11, 12])
  t.ok(space.isQuiet)
  t.equal(pageOf(child.answer()), to)
  const found = successor()
  t.same(found.unsettled, [], 'the order is known to a successor')
  t.same(sourcesOf(found.lazy, first, [first + 8, to, to + 3, first + 12]), ['zero', 8, 11, 12])
  t.equal(found.lazy.firstRegistered(to, to + 4), to)
  t.equal(found.lazy.firstRegistered(first + 8, first + 12), -1)
})

t.test('what needs no order need not wait', async (t) => {
  const { child, first, space, successor } = served(t)
  child.start('d', addressOf(first), BigInt(pageBytes))
  readSome(space)
  t.ok(space.settle())
  t.same(sourcesOf(space.lazy, first, [first, first + 1]), ['zero', 1])
  t.same(sourcesOf(successor().lazy, first, [first, first + 1]), ['zero', 1])
  t.equal(child.answer(), 0n)
})

t.test('another order than that of the journal makes a new one', async (t) => {
  // As if another thread had unmapped the last four pages, and this one was given the place before that was said.
  const { first, keeper, space, successor } = served(t, (start) => [
    { type: 'remap', from: start, to: start + 28, nr: 4 },
    { type: 'unmap', first: start + 28, nr: 4 },
    { type: 'unmap', first: start, nr: 4 },
  ])
  const changed: string[] = []
  const inode = () => fstatSync(keeper.held.get('as1.log') as number).ino
  const before = inode()
  t.ok(space.settle(({ type }) => changed.push(type)))
  t.same(changed, ['unmap', 'remap', 'unmap'])
  const wanted = ['zero', 4, 0, 3]
  t.same(sourcesOf(space.lazy, first, [first, first + 4, first + 28, first + 31]), wanted)
  t.not(inode(), before, 'the keeper has another file')
  const found = successor()
  t.same(found.unsettled, [])
  t.same(sourcesOf(found.lazy, first, [first, first + 4, first + 28, first + 31]), wanted)
})

t.test('faults that wait: one for each page', async (t) => {
  const { space } = served(t)
  space.defer([
    { page: 5, tid: 1 },
    { page: 6, tid: 2 },
  ])
  space.defer([{ page: 5, tid: 3 }])
  t.same(space.takeDeferred(), [
    { page: 5, tid: 3 },
    { page: 6, tid: 2 },
  ])
  t.same(space.takeDeferred(), [])
})

t.test('released: the keeper holds nothing any more', async (t) => {
  const keeper = new Keeper()
  const fd = uffd.create(0o2000000 | 0o4000)
  uffd.api(fd, 0n)
  holdSkeleton(keeper, 1, fd)
  const space = AddressSpace.create(keeper, 1, fd, { lazy: new LazyMap(new PageSet()), unsettled: [] })
  t.same(keeper.list(), ['as1.uffd', 'as1.log'])
  space.release()
  t.same(keeper.list(), [])
})
