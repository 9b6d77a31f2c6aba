import { once } from 'node:events'
import { closeSync, ftruncateSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import { addressOf, pageBytes, pageOf } from '@pageferry/base'
import { Child } from '@pageferry/testing/child'
import t, { type Test } from 'tap'
import * as eventJournal from '../src/event-journal.js'
import * as fds from '../src/fds.js'
import { InstallGate } from '../src/install-gate.js'
import * as uffd from '../src/uffd.js'

const nrPages = 512
const byte = 7
const features =
  uffd.UFFD_FEATURE_EVENT_FORK |
  uffd.UFFD_FEATURE_EVENT_REMAP |
  uffd.UFFD_FEATURE_EVENT_REMOVE |
  uffd.UFFD_FEATURE_EVENT_UNMAP

interface Served {
  child: Child
  first: number
  gate: InstallGate
  /** Reads what is there, and answers each fault on a page that the gate is closed for with zeros. */
  serve(): uffd.UffdEvent[]
}

function open(gate: InstallGate, first: number, nr: number): number[][] {
  const runs: number[][] = []
  gate.forEachOpen(first, nr, (page, length) => runs.push([page - first, length]))
  return runs
}

function serveChild(test: Test, nr = nrPages): Served {
  const child = new Child(nr)
  uffd.api(child.uffd, features)
  const length = BigInt(nr * pageBytes)
  uffd.register(child.uffd, child.area, length, uffd.UFFDIO_REGISTER_MODE_MISSING)
  const first = pageOf(child.area)
  const gate = InstallGate.create(Float64Array.of(first, nr))
  const bytes = eventJournal.headBytes + 10_000 * eventJournal.eventBytes
  const fd = fds.memfdCreate('journal')
  ftruncateSync(fd, bytes)
  const area = fds.mapShared(fd, bytes)
  eventJournal.format(area, 10_000)
  test.teardown(async () => {
    gate.close()
    await child.end()
    closeSync(fd)
  })
  const serve = (): uffd.UffdEvent[] => {
    const events = eventJournal.read(child.uffd, area, gate)
    for (const event of events) {
      if (event.type !== 'pagefault') continue
      const page = pageOf(event.address)
      if (open(gate, page, 1).length > 0) continue
      uffd.zeroRuns(child.uffd, Float64Array.of(page, 1), 1, true)
    }
    return events
  }
  return { child, first, gate, serve }
}

/** Serves until the child has done it. */
function perform({ child, serve }: Served, operation: string, address: bigint, argument = 0n): bigint {
  child.start(operation, address, argument)
  for (let turn = 0; ; turn++) {
    serve()
    try {
      return child.answerWithin(turn < 2000 ? 1 : 5000)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ETIMEDOUT' || turn >= 2000) throw error
    }
  }
}

t.test('open for what it was made with, until an event names it', async (t) => {
  const served = serveChild(t)
  const { child, first, gate } = served
  t.same(open(gate, first - 5, nrPages + 10), [[5, nrPages]])
  t.notOk(gate.hasOthers)
  perform(served, 'd', addressOf(first + 10), BigInt(3 * pageBytes))
  perform(served, 'u', addressOf(first + 100), BigInt(50 * pageBytes))
  t.same(open(gate, first, nrPages), [
    [0, 10],
    [13, 87],
    [150, nrPages - 150],
  ])
  t.notOk(gate.hasOthers, 'discarded pages are nobody else’s')
  perform(served, 'm', addressOf(first + 400), BigInt(8 * pageBytes))
  t.same(open(gate, first + 390, 20), [
    [0, 10],
    [18, 2],
  ])
  t.ok(gate.hasOthers, 'moved pages have to be installed by another')

  const data = new Uint8Array(nrPages * pageBytes).fill(byte)
  t.same(gate.install(child.uffd, Float64Array.of(first + 8, 8, first + 400, 8), data), {
    installed: 5,
    lost: [],
    isClosed: false,
  })
  t.equal(child.call('r', addressOf(first + 9)), BigInt(byte))
  t.equal(perform(served, 'r', addressOf(first + 11)), 0n, 'what was discarded stays discarded')
  t.same(
    gate.install(child.uffd, Float64Array.of(first + 8, 8), undefined).installed,
    0,
    'what is there is kept',
  )
  t.equal(gate.install(child.uffd, Float64Array.of(first + 200, 100), undefined).installed, 100)
  t.equal(child.call('r', addressOf(first + 250)), 0n, 'zeros')
  gate.close()
  t.ok(gate.install(child.uffd, Float64Array.of(first, 1), data).isClosed)
})

t.test('chunks, and pages that are in none', async (t) => {
  const chunk = 32_768
  const gate = InstallGate.create(Float64Array.of(5, 1, chunk - 3, 40, 7 * chunk, 2 * chunk, 2 ** 34, 1))
  const runs: number[][] = []
  for (const [first, nr] of [
    [0, 11 * chunk],
    [2 ** 34 - 40, 80],
  ]) {
    gate.forEachOpen(first, nr, (page, length) => runs.push([page, length]))
  }
  t.same(runs, [
    [5, 1],
    [chunk - 3, 40],
    [7 * chunk, 2 * chunk],
    [2 ** 34, 1],
  ])
  t.throws(() => new InstallGate(new SharedArrayBuffer(100)).close(), TypeError)
  t.equal(InstallGate.create(new Float64Array(0)).buffer.byteLength, 64)
})

t.test('a page in no registered area is said, and the rest is installed', async (t) => {
  const { child, first } = serveChild(t)
  const gate = InstallGate.create(Float64Array.of(first - 2000, 4000))
  const data = new Uint8Array(100 * pageBytes).fill(byte)
  const { installed, lost } = gate.install(child.uffd, Float64Array.of(first + nrPages - 3, 5), data)
  t.same([installed, lost], [3, [first + nrPages, first + nrPages + 1]])
  await child.kill()
  t.ok(gate.install(child.uffd, Float64Array.of(first, 1), data).isClosed, 'the address space is gone')
})

t.test('a thread that waits for events to be read can be ended', async (t) => {
  const { child, first, gate } = serveChild(t, 64)
  const worker = new Worker(new URL('./fixtures/gate-installer.ts', import.meta.url), {
    workerData: { buffer: gate.buffer, uffd: child.uffd, first, nrPages: 64, byte },
  })
  await once(worker, 'message')
  // The event is never read, so nothing can be installed.
  child.start('d', addressOf(first), BigInt(pageBytes))
  await new Promise((resolve) => setTimeout(resolve, 50))
  await worker.terminate()
  t.pass('it has ended')
  await child.kill()
})

t.test('two threads install while pages are discarded: nothing that was discarded comes back', async (t) => {
  const nrPages = 384
  const served = serveChild(t, nrPages)
  const { child, first, gate } = served
  const workers = [0, 1].map(
    () =>
      new Worker(new URL('./fixtures/gate-installer.ts', import.meta.url), {
        workerData: { buffer: gate.buffer, uffd: child.uffd, first, nrPages, byte },
      }),
  )
  await Promise.all(workers.map((worker) => once(worker, 'message')))
  for (let page = first; page < first + nrPages; page += 4) {
    perform(served, 'd', addressOf(page), BigInt(3 * pageBytes))
    for (let i = 0; i < 4; i++) {
      const value = perform(served, 'r', addressOf(page + i))
      if (value !== (i < 3 ? 0n : BigInt(byte))) t.fail(`page ${page - first + i} reads ${value}`)
    }
  }
  for (let i = 0; i < nrPages; i++) {
    const value = perform(served, 'r', addressOf(first + i))
    if (value !== (i % 4 < 3 ? 0n : BigInt(byte))) t.fail(`at the end page ${i} reads ${value}`)
  }
  const ends = workers.map((worker) => once(worker, 'message'))
  gate.close()
  const said = (await Promise.all(ends)).map(([message]) => message as { installed: number; turns: number })
  t.ok(said.every(({ turns }) => turns > 1))
  await Promise.all(workers.map((worker) => worker.terminate()))
})
