import { closeSync, ftruncateSync } from 'node:fs'
import { addressOf, pageBytes, pageOf } from '@pageferry/base'
import { Child } from '@pageferry/testing/child'
import t, { type Test } from 'tap'
import * as eventJournal from '../src/event-journal.js'
import * as fds from '../src/fds.js'
import * as uffd from '../src/uffd.js'

const nrPages = 32
const capacity = 128
const areaBytes = eventJournal.headBytes + capacity * eventJournal.eventBytes
const stagingAt = 2048
const features =
  uffd.UFFD_FEATURE_EVENT_FORK |
  uffd.UFFD_FEATURE_EVENT_REMAP |
  uffd.UFFD_FEATURE_EVENT_REMOVE |
  uffd.UFFD_FEATURE_EVENT_UNMAP

function journal(test: Test): { fd: number; area: Uint8Array } {
  const fd = fds.memfdCreate('journal')
  test.teardown(() => closeSync(fd))
  ftruncateSync(fd, areaBytes)
  const area = fds.mapShared(fd, areaBytes)
  eventJournal.format(area, capacity)
  return { fd, area }
}

function registered(test: Test): Child {
  const child = new Child(nrPages)
  test.teardown(() => child.end())
  uffd.api(child.uffd, features)
  const length = BigInt(nrPages * pageBytes)
  uffd.register(child.uffd, child.area, length, uffd.UFFDIO_REGISTER_MODE_MISSING)
  return child
}

function nextEvents(fd: number, area: Uint8Array): uffd.UffdEvent[] {
  for (const deadline = Date.now() + 5000; Date.now() < deadline; ) {
    const read = eventJournal.read(fd, area)
    if (read.length > 0) return read
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1)
  }
  throw new Error('no event')
}

/** struct uffd_msg: what the kernel writes */
function message(event: number, ...words: bigint[]): Buffer {
  const bytes = Buffer.alloc(eventJournal.eventBytes)
  bytes[0] = event
  for (const [i, word] of words.entries()) bytes.writeBigUInt64LE(word, 8 + 8 * i)
  return bytes
}

const PAGEFAULT = 0x12
const REMOVE = 0x15

t.test('what changes the address space is kept, in order; faults are only answered', async (t) => {
  const child = registered(t)
  const { fd, area } = journal(t)
  const first = pageOf(child.area)
  child.start('r', child.area)
  t.match(nextEvents(child.uffd, area), [{ type: 'pagefault', address: child.area }])
  uffd.zeroRuns(child.uffd, new Float64Array([first, 1]), 1, true)
  t.equal(child.answer(), 0n)
  t.same(eventJournal.events(area), [])

  child.start('d', child.area + 4096n, 8192n)
  const [removed] = nextEvents(child.uffd, area)
  t.equal(child.answer(), 0n)
  child.start('u', addressOf(first + 24), 4096n)
  const [unmapped] = nextEvents(child.uffd, area)
  t.equal(child.answer(), 0n)
  t.match(removed, { type: 'remove', start: child.area + 4096n })
  t.same(eventJournal.events(area), [removed, unmapped])
  t.same(
    eventJournal.events(fds.mapShared(fd, areaBytes)),
    [removed, unmapped],
    'another mapping says the same',
  )
})

t.test('what a dead reader had read last is in staging, and is taken over', async (t) => {
  const { area } = journal(t)
  area.set(message(REMOVE, 0x1000n, 0x2000n), stagingAt)
  area.set(message(PAGEFAULT, 0n, 0x5000n), stagingAt + 32)
  area.set(message(REMOVE, 0x3000n, 0x4000n), stagingAt + 64)
  const wanted = [
    { type: 'remove', start: 0x1000n, end: 0x2000n },
    { type: 'remove', start: 0x3000n, end: 0x4000n },
  ]
  t.same(eventJournal.events(area), wanted)
  t.same(eventJournal.events(area), wanted, 'once')
})

t.test(
  'killed between any two steps of moving staging into the log, no event is lost or doubled',
  async (t) => {
    const events = [
      message(REMOVE, 1n << 12n, 2n << 12n),
      message(PAGEFAULT, 0n, 0n),
      message(REMOVE, 3n << 12n, 4n << 12n),
    ]
    const wanted = [1n, 3n].map((page) => ({ type: 'remove', start: page << 12n, end: (page + 1n) << 12n }))
    // state = events in the log << 8 | records of staging that are dealt with
    for (const [count, staged, cleared] of [
      [0, 0, 0],
      [1, 1, 0],
      [2, 3, 0],
      [2, 64, 0],
      [2, 64, 1],
      [2, 64, 3],
      [2, 0, 3],
    ]) {
      const { area } = journal(t)
      const log = [events[0], events[2]].slice(0, count)
      for (const [i, bytes] of log.entries()) area.set(bytes, eventJournal.headBytes + 32 * i)
      for (const [i, bytes] of events.entries()) if (i >= cleared) area.set(bytes, stagingAt + 32 * i)
      new DataView(area.buffer, area.byteOffset).setBigUint64(8, BigInt(count * 256 + staged), true)
      t.same(
        eventJournal.events(area),
        wanted,
        `${count} in the log, ${staged} dealt with, ${cleared} cleared`,
      )
    }
  },
)

t.test('a full log is refused before anything is read', async (t) => {
  const child = registered(t)
  const { area } = journal(t)
  new DataView(area.buffer, area.byteOffset).setBigUint64(8, BigInt(capacity) << 8n, true)
  child.start('d', child.area, 4096n)
  t.throws(() => eventJournal.read(child.uffd, area), { code: 'ENOSPC' })
  const other = journal(t)
  t.match(nextEvents(child.uffd, other.area), [{ type: 'remove' }], 'it is still there')
  t.equal(child.answer(), 0n)
})

t.test('anything but a journal is refused', async (t) => {
  t.throws(() => eventJournal.events(new Uint8Array(100)), TypeError)
  t.throws(() => eventJournal.events(new Uint8Array(areaBytes)), TypeError)
  const { area } = journal(t)
  new DataView(area.buffer, area.byteOffset).setBigUint64(8, BigInt(capacity + 1) << 8n, true)
  t.throws(() => eventJournal.events(area), TypeError, 'more events than it has room for')
})

t.test('changes that were read into another journal come first', async (t) => {
  const { area } = journal(t)
  const changes: eventJournal.ChangeEvent[] = [
    { type: 'remap', from: 0x1000n, to: 0x7fff_ffff_e000n, length: 0x2000n },
    { type: 'unmap', start: 0x1000n, end: 0x3000n },
    { type: 'remove', start: 0x5000n, end: 0x6000n },
  ]
  for (const change of changes) eventJournal.append(area, change)
  t.equal(eventJournal.count(area), 3)
  area.set(message(REMOVE, 0x7000n, 0x8000n), stagingAt)
  t.throws(() => eventJournal.append(area, changes[0]), TypeError, 'too late')
  t.same(eventJournal.events(area), [...changes, { type: 'remove', start: 0x7000n, end: 0x8000n }])
  t.equal(eventJournal.count(area), 4)
})

t.test('a full log takes no more changes', async (t) => {
  const { area } = journal(t)
  const change = { type: 'remove', start: 0n, end: 4096n } as const
  for (let i = 0; i < capacity; i++) eventJournal.append(area, change)
  t.throws(() => eventJournal.append(area, change), { code: 'ENOSPC' })
  t.equal(eventJournal.count(area), capacity)
})
