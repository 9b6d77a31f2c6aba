import t from 'tap'
import { PageHashes } from '../src/page-hashes.js'

t.test('keeps one hash per page, over the borders of chunks, and survives a file', async (t) => {
  const hashes = new PageHashes()
  const pages = [0, 1, 4095, 4096, 2 ** 35 - 1]
  for (const page of pages) hashes.set(page, BigInt(page) + 7n)
  hashes.set(1, 2n ** 64n - 1n)
  const again = PageHashes.fromWords(hashes.toWords())
  for (const each of [hashes, again]) {
    for (const page of pages) t.equal(each.get(page), page === 1 ? 2n ** 64n - 1n : BigInt(page) + 7n)
    t.equal(each.get(10_000_000), undefined)
  }
})
