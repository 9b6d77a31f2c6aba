import t from 'tap'
import { InstalledHashes, PageHashes, PageSet } from '../src/index.js'

t.test('what was stored is found again, nothing else is', async (t) => {
  const hashes = new PageHashes()
  const pages = [0, 4095, 4096, 2 ** 34 + 5, 2 ** 35 - 1]
  for (const page of pages) hashes.set(page, BigInt(page) + 7n)
  hashes.set(1, 2n ** 64n - 1n)
  for (const page of pages) t.equal(hashes.get(page), BigInt(page) + 7n)
  t.equal(hashes.get(1), 2n ** 64n - 1n)
  for (const page of [2, 2 ** 34, 5 * 4096]) t.notOk(hashes.get(page))
})

const runs = (...numbers: number[]) => Float64Array.from(numbers)
const hashes = (...numbers: bigint[]) => BigUint64Array.from(numbers)

t.test('of several rounds the last one counts, of pages that were kept', async (t) => {
  const installed = new InstalledHashes()
  installed.noteRound(runs(10, 2, 20, 1), hashes(1n, 2n, 3n))
  installed.noteRound(runs(11, 1, 30, 1), hashes(22n, 4n))
  installed.noteKept(runs(10, 2, 30, 1))
  t.same(installed.comparable.runTable(), runs(10, 2, 30, 1))
  t.same(installed.hashesOf(runs(10, 2, 30, 1), 3), hashes(1n, 22n, 4n))
  t.ok(installed.unhashed.isEmpty)
  // What was sent and written again became lazy: only the lazy copy counts.
  installed.noteLazy(runs(20, 1), hashes(33n))
  t.same(installed.comparable.runTable(), runs(10, 2, 20, 1, 30, 1))
  t.same(installed.hashesOf(runs(20, 1), 1), hashes(33n))
  t.ok(installed.contradictory.isEmpty)
})

t.test('a page that was kept and never hashed is known', async (t) => {
  const installed = new InstalledHashes()
  installed.noteRound(runs(10, 2), hashes(1n, 2n))
  installed.noteKept(runs(9, 4))
  t.same(installed.unhashed, PageSet.of([9, 1], [12, 1]))
  t.same(installed.comparable, PageSet.of([10, 2]))
})

t.test('a lazy page may come twice, as the same', async (t) => {
  const installed = new InstalledHashes()
  installed.noteLazy(runs(5, 3), hashes(1n, 2n, 3n))
  installed.noteLazy(runs(6, 1), hashes(2n))
  t.same(installed.comparable, PageSet.of([5, 3]))
  installed.noteLazy(runs(7, 1), hashes(4n))
  t.same(installed.contradictory, PageSet.of([7, 1]))
  t.same(installed.comparable, PageSet.of([5, 2]))
})
