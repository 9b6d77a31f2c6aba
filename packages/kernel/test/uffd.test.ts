import { closeSync, constants, openSync } from 'node:fs'
import { addressOf, pageBytes, pageOf } from '@pageferry/base'
import { Child } from '@pageferry/testing/child'
import t, { type Test } from 'tap'
import * as uffd from '../src/uffd.js'

const nrPages = 32
const events =
  uffd.UFFD_FEATURE_EVENT_FORK |
  uffd.UFFD_FEATURE_EVENT_REMAP |
  uffd.UFFD_FEATURE_EVENT_REMOVE |
  uffd.UFFD_FEATURE_EVENT_UNMAP

/** A child whose area is registered for missing faults, and its memory file. */
function registered(test: Test): { child: Child; first: number; memFd: number } {
  const child = new Child(nrPages)
  const memFd = openSync(`/proc/${child.pid}/mem`, 'r+')
  test.teardown(async () => {
    closeSync(memFd)
    await child.end()
  })
  const { features } = uffd.api(child.uffd, events | uffd.UFFD_FEATURE_THREAD_ID)
  test.equal(features & events, events)
  const length = BigInt(nrPages * pageBytes)
  const ioctls = uffd.register(child.uffd, child.area, length, uffd.UFFDIO_REGISTER_MODE_MISSING)
  test.equal(ioctls & 0b11100n, 0b11100n, 'wake, copy and zeropage are possible')
  return { child, first: pageOf(child.area), memFd }
}

/** Pages filled with their index + base. */
function contents(count: number, base: number): Uint8Array {
  const data = new Uint8Array(count * pageBytes)
  for (let i = 0; i < count; i++) data.fill(base + i, i * pageBytes, (i + 1) * pageBytes)
  return data
}

/** What is read first; the event arrives a moment after the operation was started. */
function nextEvents(fd: number): uffd.UffdEvent[] {
  const deadline = Date.now() + 5000
  while (Date.now() < deadline) {
    const read = uffd.readEvents(fd)
    if (read.length > 0) return read
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1)
  }
  throw new Error('no event')
}

t.test('probing: features of a descriptor of our own', async (t) => {
  const fd = uffd.create(constants.O_NONBLOCK | 0o2000000)
  const { features } = uffd.api(fd, 0n)
  t.ok(features & uffd.UFFD_FEATURE_EVENT_REMOVE)
  t.throws(() => uffd.api(fd, 0n), { code: 'EINVAL', syscall: 'ioctl(UFFDIO_API)' }, 'once per descriptor')
  t.same(uffd.readEvents(fd), [])
  closeSync(fd)
  const blocking = uffd.create(0)
  t.throws(() => uffd.readEvents(blocking), /O_NONBLOCK/)
  closeSync(blocking)
})

t.test('installs runs, keeps or overwrites what is there', async (t) => {
  const { child, first, memFd } = registered(t)
  const read = (page: number) => Number(child.call('r', addressOf(first + page)))
  const install = (runs: number[], data: Uint8Array, onExisting: 'keep' | 'overwrite') =>
    uffd.installRuns(child.uffd, memFd, new Float64Array(runs), runs.length / 2, data, onExisting, true)

  t.same(install([first, 4, first + 8, 2], contents(6, 1), 'keep'), {
    state: 'done',
    pages: 6,
    installed: 6,
    existing: 0,
    overwritten: 0,
  })
  t.same([0, 1, 2, 3, 8, 9].map(read), [1, 2, 3, 4, 5, 6])

  t.same(
    install([first + 2, 8], contents(8, 50), 'keep'),
    { state: 'done', pages: 8, installed: 4, existing: 4, overwritten: 0 },
    'pages 2, 3, 8 and 9 are kept, between them are partial copies',
  )
  t.same([2, 3, 4, 7, 8, 9].map(read), [3, 4, 52, 55, 5, 6])

  child.call('p', child.area, BigInt(nrPages * pageBytes))
  t.same(
    install([first + 8, 4], contents(4, 80), 'overwrite'),
    { state: 'done', pages: 4, installed: 2, existing: 0, overwritten: 2 },
    'also where the process itself may only read',
  )
  t.same([8, 9, 10, 11].map(read), [80, 81, 82, 83])
})

t.test('a run may span several areas; the page outside of all is named', async (t) => {
  const { child, first } = registered(t)
  child.call('p', addressOf(first + 13), 4096n)
  const run = new Float64Array([first, 21])
  t.match(uffd.installRuns(child.uffd, -1, run, 1, contents(21, 1), 'keep', true), {
    state: 'done',
    installed: 21,
  })
  t.same(
    [0, 12, 13, 14, 20].map((page) => child.call('r', addressOf(first + page))),
    [1n, 13n, 14n, 15n, 21n],
  )
  uffd.unregister(child.uffd, addressOf(first + 27), 4096n)
  const table = new Float64Array([first + 19, 2, first + 21, 11])
  t.same(uffd.zeroRuns(child.uffd, table, 2, true), {
    state: 'no-range',
    pages: 8,
    installed: 6,
    existing: 2,
    overwritten: 0,
  })
})

t.test('zero pages keep what is there', async (t) => {
  const { child, first } = registered(t)
  uffd.installRuns(child.uffd, -1, new Float64Array([first + 1, 1]), 1, contents(1, 7), 'keep', true)
  t.same(uffd.zeroRuns(child.uffd, new Float64Array([first, 3]), 1, true), {
    state: 'done',
    pages: 3,
    installed: 2,
    existing: 1,
    overwritten: 0,
  })
  t.same(
    [0, 1, 2].map((page) => child.call('r', addressOf(first + page))),
    [0n, 7n, 0n],
  )
})

t.test('a fault is reported, installed and ends', async (t) => {
  const { child, first } = registered(t)
  const address = addressOf(first + 5)
  child.start('w', address + 123n, 9n)
  const [event] = nextEvents(child.uffd)
  t.match(event, { type: 'pagefault', flags: uffd.UFFD_PAGEFAULT_FLAG_WRITE, tid: child.pid })
  t.equal(event?.type === 'pagefault' && event.address & ~4095n, address)

  const run = new Float64Array([first + 5, 1])
  uffd.installRuns(child.uffd, -1, run, 1, contents(1, 66), 'keep', false)
  t.same(uffd.readEvents(child.uffd), [], 'the thread waits still: it was not woken')
  uffd.wake(child.uffd, address, 4096n)
  t.equal(child.answer(), 0n)
  t.equal(child.call('r', address), 66n)
  t.equal(child.call('r', address + 123n), 9n)

  child.start('r', addressOf(first + 6))
  nextEvents(child.uffd)
  uffd.wake(child.uffd, addressOf(first + 6), 4096n)
  t.match(nextEvents(child.uffd), [{ type: 'pagefault' }], 'a wake without a page: reported again')
  uffd.zeroRuns(child.uffd, new Float64Array([first + 6, 1]), 1, true)
  t.equal(child.answer(), 0n)
})

t.test('remove: again until the event was read', async (t) => {
  const { child, first } = registered(t)
  const run = new Float64Array([first, 4])
  uffd.installRuns(child.uffd, -1, run, 1, contents(4, 1), 'keep', true)
  child.start('d', child.area + 4096n, 8192n)
  let outcome = uffd.zeroRuns(child.uffd, new Float64Array([first + 20, 1]), 1, true)
  for (let i = 21; outcome.state === 'done' && i < nrPages; i++) {
    await new Promise((resolve) => setTimeout(resolve, 20))
    outcome = uffd.zeroRuns(child.uffd, new Float64Array([first + i, 1]), 1, true)
  }
  t.same(outcome, { state: 'again', pages: 0, installed: 0, existing: 0, overwritten: 0 })
  t.same(nextEvents(child.uffd), [
    { type: 'remove', start: child.area + 4096n, end: child.area + 3n * 4096n },
  ])
  t.equal(child.answer(), 0n)
  t.same(uffd.installRuns(child.uffd, -1, run, 1, contents(4, 1), 'keep', true), {
    state: 'done',
    pages: 4,
    installed: 2,
    existing: 2,
    overwritten: 0,
  })
})

t.test('unmap and remap move the ranges; gone is gone', async (t) => {
  const { child, first } = registered(t)
  const tail = addressOf(first + 24)
  child.start('u', tail, 8n * 4096n)
  t.same(nextEvents(child.uffd), [{ type: 'unmap', start: tail, end: tail + 8n * 4096n }])
  t.equal(child.answer(), 0n)
  const zero = (page: number) => uffd.zeroRuns(child.uffd, new Float64Array([page, 1]), 1, true)
  t.equal(zero(first + 24).state, 'no-range')

  child.start('m', child.area, 24n * 4096n)
  const [event] = nextEvents(child.uffd)
  const to = event?.type === 'remap' ? event.to : 0n
  t.same(event, { type: 'remap', from: child.area, to, length: 24n * 4096n })
  t.equal(
    child.answerWhileReading(),
    to,
    'after the unmapping of the old place, which is an event of its own',
  )
  t.equal(zero(first).state, 'no-range')
  t.equal(zero(pageOf(to)).state, 'done', 'the new place is registered')

  await child.kill()
  t.equal(zero(pageOf(to) + 1).state, 'gone')
})

t.test(
  'whether a page is registered is known when nothing is under way, and asking changes nothing',
  async (t) => {
    const { child, first } = registered(t)
    const isRegistered = (page: number) => uffd.isRegistered(child.uffd, addressOf(first + page))
    t.ok(isRegistered(0))
    t.ok(isRegistered(nrPages - 1))
    uffd.installRuns(child.uffd, -1, Float64Array.of(first, 1), 1, contents(1, 9), 'keep', true)
    t.ok(isRegistered(0), 'a page that is there')
    const other = pageOf(child.call('a', 0n, BigInt(4 * pageBytes)))
    t.notOk(uffd.isRegistered(child.uffd, addressOf(other + 1)), 'mapped, and not registered')
    t.notOk(uffd.isRegistered(child.uffd, 0x1000n), 'nothing')

    child.start('d', child.area, BigInt(pageBytes))
    let asked = 0
    while (isRegistered(1) && asked < 1_000_000) asked++
    t.notOk(isRegistered(1), 'an event waits to be read')
    t.match(nextEvents(child.uffd), [{ type: 'remove' }])
    t.equal(child.answer(), 0n)
    t.ok(isRegistered(1))
    child.start('r', addressOf(first + 1))
    t.match(nextEvents(child.uffd), [{ type: 'pagefault' }], 'nothing was installed')
    uffd.zeroRuns(child.uffd, Float64Array.of(first + 1, 1), 1, true)
    t.equal(child.answer(), 0n)

    child.start('u', addressOf(first + 4), BigInt(2 * pageBytes))
    t.match(nextEvents(child.uffd), [{ type: 'unmap' }])
    t.equal(child.answer(), 0n)
    t.same([3, 4, 5, 6].map(isRegistered), [true, false, false, true])
  },
)

t.test('fork: the child comes with its own descriptor', async (t) => {
  const { child, first } = registered(t)
  child.start('f', child.area)
  const [event] = nextEvents(child.uffd)
  const fd = event?.type === 'fork' ? event.fd : -1
  t.ok(fd > 2)
  t.match(nextEvents(fd), [{ type: 'pagefault', address: child.area }])
  uffd.installRuns(fd, -1, new Float64Array([first, 1]), 1, contents(1, 42), 'keep', true)
  t.equal(child.answer(), 42n)
  closeSync(fd)
})

t.test('a refused call names itself', async (t) => {
  const { child } = registered(t)
  t.throws(() => uffd.register(child.uffd, child.area + 1n, 4096n, uffd.UFFDIO_REGISTER_MODE_MISSING), {
    code: 'EINVAL',
    errno: 22,
    syscall: 'ioctl(UFFDIO_REGISTER)',
  })
  t.throws(
    () => uffd.installRuns(child.uffd, -1, new Float64Array([1, 2]), 1, contents(1, 0), 'keep', true),
    TypeError,
  )
  t.throws(() => uffd.zeroRuns(child.uffd, new Float64Array(2), 2, true), TypeError)
  uffd.unregister(child.uffd, child.area, BigInt(nrPages * pageBytes))
  t.equal(child.call('r', child.area), 0n, 'not registered any more: the kernel fills it')
})
