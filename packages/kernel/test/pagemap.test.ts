import { closeSync, openSync } from 'node:fs'
import { addressOf, GiB, pageBytes, pageOf } from '@pageferry/base'
import { Child } from '@pageferry/testing/child'
import t, { type Test } from 'tap'
import * as pagemap from '../src/pagemap.js'
import * as uffd from '../src/uffd.js'

const nrPages = 2048

function opened(test: Test): { child: Child; first: number; fd: number } {
  const child = new Child(nrPages)
  const fd = openSync(`/proc/${child.pid}/pagemap`, 'r')
  test.teardown(async () => {
    closeSync(fd)
    await child.end()
  })
  return { child, first: pageOf(child.area), fd }
}

const writtenRequest: pagemap.ScanRequest = {
  flags: pagemap.PM_SCAN_WP_MATCHING | pagemap.PM_SCAN_CHECK_WPASYNC,
  inverted: 0,
  mask: pagemap.PAGE_IS_WRITTEN,
  anyof: pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_SWAPPED,
  returnMask: pagemap.PAGE_IS_WRITTEN,
  maxPages: 0,
}

/** Regions as [page offset, pages], and where the scan came to. */
function scan(fd: number, start: number, end: number, request: pagemap.ScanRequest, slots = 256) {
  const out = new Float64Array(3 * slots)
  const { regions, walkEndPage } = pagemap.scan(fd, start, end, request, out)
  const found = Array.from({ length: regions }, (_, i) => [
    (out[3 * i] as number) - start,
    out[3 * i + 1] as number,
  ])
  return { found, walkEndPage, categories: Array.from({ length: regions }, (_, i) => out[3 * i + 2]) }
}

t.test('written pages are reported once per write, untouched ones never', async (t) => {
  const { child, first, fd } = opened(t)
  const write = (page: number) => child.call('w', addressOf(first + page), 1n)
  const sparseBytes = 64 * GiB
  const sparse = child.call('a', 0n, BigInt(sparseBytes))
  child.call('w', sparse + 7n * 4096n, 1n)

  t.throws(() => scan(fd, first, first + nrPages, writtenRequest), { code: 'EPERM' }, 'not registered')
  uffd.api(child.uffd, uffd.UFFD_FEATURE_WP_ASYNC | uffd.UFFD_FEATURE_WP_UNPOPULATED)
  uffd.register(child.uffd, child.area, BigInt(nrPages * pageBytes), uffd.UFFDIO_REGISTER_MODE_WP)
  uffd.register(child.uffd, sparse, BigInt(sparseBytes), uffd.UFFDIO_REGISTER_MODE_WP)

  for (const page of [0, 1, 5]) write(page)
  t.same(scan(fd, first, first + nrPages, writtenRequest), {
    found: [
      [0, 2],
      [5, 1],
    ],
    walkEndPage: first + nrPages,
    categories: [pagemap.PAGE_IS_WRITTEN, pagemap.PAGE_IS_WRITTEN],
  })
  t.same(scan(fd, first, first + nrPages, writtenRequest).found, [], 'reported once')
  for (const page of [5, 9]) write(page)
  child.call('r', addressOf(first + 1))
  t.same(scan(fd, first, first + nrPages, writtenRequest).found, [
    [5, 1],
    [9, 1],
  ])

  const sparsePage = pageOf(sparse)
  const all = scan(fd, sparsePage, sparsePage + sparseBytes / pageBytes, writtenRequest)
  t.same(all.found, [[7, 1]], 'of 16 million pages only the one that exists')
})

t.test('a full table says where to go on, also beyond 512 regions', async (t) => {
  const { child, first, fd } = opened(t)
  for (let page = 0; page < nrPages; page += 2) child.call('w', addressOf(first + page), 1n)
  const request = {
    flags: 0,
    inverted: 0,
    mask: pagemap.PAGE_IS_PRESENT,
    anyof: 0,
    returnMask: pagemap.PAGE_IS_PRESENT,
    maxPages: 0,
  }
  const expected = Array.from({ length: nrPages / 2 }, (_, i) => [2 * i, 1])
  for (const slots of [1, 7, 511, 512, 513, 700, 1023, 1024, 1025]) {
    const found: number[][] = []
    let start = first
    while (start < first + nrPages) {
      const step = scan(fd, start, first + nrPages, request, slots)
      for (const [page, pages] of step.found) found.push([(page as number) + start - first, pages as number])
      start = step.walkEndPage
    }
    t.same(found, expected, `with ${slots} slots`)
  }
  const limited = scan(fd, first, first + nrPages, { ...request, maxPages: 3 })
  t.same(limited.found, expected.slice(0, 3))
  t.ok(limited.walkEndPage <= first + 6, 'a page limit does not pass for the end')
})

t.test('classic entries', async (t) => {
  const { child, first, fd } = opened(t)
  child.call('w', addressOf(first + 1), 1n)
  const out = new BigUint64Array(3)
  t.equal(pagemap.read(fd, first, 3, out), 3)
  t.same(
    [...out].map((entry) => (entry & pagemap.PM_PRESENT) !== 0n),
    [false, true, false],
  )
  t.throws(() => pagemap.read(fd, first, 4, out), TypeError)
  pagemap.clearSoftDirty(child.pid)
  t.throws(() => pagemap.clearSoftDirty(2 ** 30), { code: 'ENOENT', pid: 2 ** 30 })
})
