import { closeSync, openSync } from 'node:fs'
import { pageBytes, pageOf } from '@pageferry/base'
import type { Tracker } from '@pageferry/checkpoint'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive, kill } from '@pageferry/testing/processes'
import { startTarget } from '@pageferry/testing/target'
import { maxBatchPages } from '@pageferry/wire'
import t, { type Test } from 'tap'
import { PageReader } from '../src/rounds/page-reader.js'

const out = Buffer.alloc(maxBatchPages * pageBytes)

/** See target.c: page i holds the byte i + 1; 3 and 4 are zeros, 8 to 11 PROT_NONE, 13 is not mapped. */
async function reader(test: Test, tracker: Tracker | null = null) {
  const target = await startTarget()
  test.teardown(() => kill(target.pid))
  const memFd = openSync(`/proc/${target.pid}/mem`, 'r')
  test.teardown(() => closeSync(memFd))
  out.fill(0xee)
  return { reader: new PageReader(target.pid, memFd, tracker), first: pageOf(target.area), pid: target.pid }
}

/** The byte that each of the first pages of the buffer is full of; -1 if it is not. */
function bytesOf(nrPages: number): number[] {
  return Array.from({ length: nrPages }, (_, i) => {
    const page = out.subarray(i * pageBytes, (i + 1) * pageBytes)
    return page.every((byte) => byte === page[0]) ? page[0] : -1
  })
}

/** Runs as differences from the first page of the area. */
const relative = (runs: Float64Array, first: number) =>
  [...runs].map((value, i) => (i % 2 === 0 ? value - first : value))

t.test('zeros are sorted out, and content is moved to the front', async (t) => {
  const { reader: pages, first } = await reader(t)
  const read = pages.read(Float64Array.of(first, 3, first + 3, 4, first + 12, 1), 3, out, false)
  t.same(relative(read.runs, first), [0, 3, 5, 2, 12, 1])
  t.equal(read.nrPages, 6)
  t.same(relative(read.zeroRuns, first), [3, 2])
  t.equal(read.nrZeroPages, 2)
  t.same(read.vanished, new Float64Array(0))
  t.same(bytesOf(6), [1, 2, 3, 6, 7, 13])
})

t.test('only as many runs are read as are counted', async (t) => {
  const { reader: pages, first } = await reader(t)
  const read = pages.read(Float64Array.of(first, 1, first + 2, 1, first + 5, 1), 2, out, false)
  t.same(relative(read.runs, first), [0, 1, 2, 1])
  t.same(bytesOf(2), [1, 3])
})

t.test('memory that the process itself may not read', async (t) => {
  const { reader: pages, first } = await reader(t)
  const read = pages.read(Float64Array.of(first + 7, 6), 1, out, false)
  t.same(relative(read.runs, first), [7, 6])
  t.same(bytesOf(6), [8, 9, 10, 11, 12, 13])
})

t.test('pages that vanished since the scan are named, and all others are read', async (t) => {
  const { reader: pages, first } = await reader(t)
  const read = pages.read(Float64Array.of(first + 2, 2, first + 12, 4), 2, out, true)
  t.same(relative(read.vanished, first), [13, 1])
  t.same(relative(read.runs, first), [2, 1, 12, 1, 14, 2])
  t.same(relative(read.zeroRuns, first), [3, 1])
  t.same(bytesOf(4), [3, 13, 15, 16])

  const gone = pages.read(Float64Array.of(first + 13, 1), 1, out, true)
  t.same(relative(gone.vanished, first), [13, 1])
  t.match(gone, { nrPages: 0, nrZeroPages: 0, runs: new Float64Array(0), zeroRuns: new Float64Array(0) })
})

t.test('while it is frozen nothing may vanish', async (t) => {
  const { reader: pages, first, pid } = await reader(t)
  const page = (first + 13).toString(16)
  t.throws(() => pages.read(Float64Array.of(first + 12, 4), 1, out, false), {
    code: 'WORKLOAD_CHANGED',
    message: new RegExp(`^page 0x${page} of process ${pid} cannot be read$`),
  })
})

t.test('a tracker sees every page that was read, zeros too, as it was', async (t) => {
  const seen: { runs: number[]; bytes: number[] }[] = []
  const tracker = {
    noteRead(runs: Float64Array, nrRuns: number, data: Uint8Array) {
      let pages = 0
      for (let r = 0; r < nrRuns; r++) pages += runs[2 * r + 1]
      seen.push({ runs: [...runs], bytes: Array.from({ length: pages }, (_, i) => data[i * pageBytes]) })
    },
  } as unknown as Tracker
  const { reader: pages, first } = await reader(t, tracker)
  pages.read(Float64Array.of(first + 2, 4, first + 12, 3), 2, out, true)
  t.same(seen, [{ runs: [first + 2, 4, first + 12, 1, first + 14, 1], bytes: [3, 0, 0, 6, 13, 15] }])
})

t.test('a process that has ended is an error and not a hole', async (t) => {
  const { reader: pages, first, pid } = await reader(t)
  kill(pid)
  await eventually('it has ended', () => !isAlive(pid))
  t.throws(() => pages.read(Float64Array.of(first, 2), 1, out, true), { code: 'ESRCH' })
})
