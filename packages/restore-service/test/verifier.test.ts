import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { addressOf, pageBytes } from '@pageferry/base'
import type { Restorer } from '@pageferry/checkpoint'
import { memory } from '@pageferry/kernel'
import { AreaMap, checkInstalled, PageSet } from '@pageferry/pages'
import { type FrameOf, hashesToPayload } from '@pageferry/wire'
import t from 'tap'
import { installRanges, PageInstaller } from '../src/rounds/installer.js'
import { Verifier } from '../src/rounds/verifier.js'
import { area, base, createRestorer, pages, table } from './fixtures/skeleton.js'

const none = new Float64Array(0)

function frame(runs: Float64Array, data: Uint8Array, last = true): [FrameOf<'pageHashes'>, Uint8Array] {
  const hashes = new BigUint64Array(data.length / pageBytes)
  memory.hashPages(data, hashes.length, hashes)
  return [{ type: 'pageHashes', asId: 1, kind: 'memory', runs, last }, hashesToPayload(hashes)]
}

/** A verifier that knows what pages should hold. */
function verifierOf(runs: Float64Array, data: Uint8Array): Verifier {
  const verifier = new Verifier()
  verifier.add(...frame(runs, data))
  return verifier
}

function flipBit(restorer: Restorer, at: number, byte: number, bit: number): void {
  const address = addressOf(base + at) + BigInt(byte)
  const value = Buffer.alloc(1)
  memory.pread(restorer.skeleton.memFd, address, value)
  value[0] ^= 1 << bit
  memory.pwrite(restorer.skeleton.memFd, address, value)
}

t.test('pages of the skeleton', async (t) => {
  const restorer = await createRestorer(t)
  restorer.map.apply(new AreaMap([area(0, 3000, 'anon')]))
  const many = Buffer.alloc(2500 * pageBytes)
  for (let i = 0; i < 2500; i++) many.writeUInt32LE(i + 1, i * pageBytes + (i % 1000) * 4)
  new PageInstaller(restorer.uffd, restorer.skeleton.memFd, installRanges(restorer.map)).installBatch(
    table([0, 2500]),
    many,
    table([2600, 2]),
  )
  const runs = table([0, 2500], [2600, 2])
  const should = Buffer.concat([many, pages(0, 0)])
  const set = PageSet.fromRuns(runs)

  await t.test('are what the source hashed', async (t) => {
    const verifier = verifierOf(runs, should)
    verifier.checkInstalled(restorer.pid, set)
    t.match(verifier, { pages: 2502, mismatches: 0, differing: [], complete: true })
  })

  await t.test('one flipped bit is found, wherever it is', async (t) => {
    const places: [at: number, byte: number, bit: number][] = [
      [0, 0, 0],
      [1023, pageBytes - 1, 7],
      [1024, 2048, 3],
      [2499, 1, 0],
      [2601, 4000, 5],
    ]
    for (const [at, byte, bit] of places) {
      flipBit(restorer, at, byte, bit)
      const verifier = verifierOf(runs, should)
      verifier.checkInstalled(restorer.pid, set)
      t.match(verifier, { pages: 2502, mismatches: 1, differing: [base + at] })
      flipBit(restorer, at, byte, bit)
    }
  })

  await t.test('two pages that were exchanged are found', async (t) => {
    const verifier = verifierOf(table([1, 1], [0, 1]), many.subarray(0, 2 * pageBytes))
    verifier.checkInstalled(restorer.pid, PageSet.of([base, 2]))
    t.match(verifier, { mismatches: 2, differing: [base, base + 1] })
  })

  await t.test('pages that are missing or should not be there are found', async (t) => {
    const final = {
      parent: PageSet.of([base, 2500]),
      present: PageSet.of([base + 2600, 2], [base + 2700, 1]),
      lazy: PageSet.of([base + 2800, 10]),
    }
    new PageInstaller(restorer.uffd, restorer.skeleton.memFd, installRanges(restorer.map)).installBatch(
      table([2805, 1]),
      pages(1),
      table([2900, 2]),
    )
    const { missing, unexpected } = checkInstalled(restorer.presentPages(), final, restorer.map.map)
    t.same([...missing.runs()], [[base + 2700, 1]])
    t.same(
      [...unexpected.runs()],
      [
        [base + 2805, 1],
        [base + 2900, 2],
      ],
      'a lazy page that is there would never fault',
    )
    const verifier = verifierOf(runs, should)
    verifier.noteUnexpected(missing)
    verifier.noteUnexpected(unexpected)
    t.match(verifier, { mismatches: 4, differing: [2700, 2805, 2900, 2901].map((at) => base + at) })
  })

  await t.test('what cannot be read is a mismatch, and so is what nobody hashed', async (t) => {
    const verifier = verifierOf(runs, should)
    verifier.checkInstalled(restorer.pid, PageSet.of([base + 5000, 2]))
    t.match(verifier, { mismatches: 2, differing: [base + 5000, base + 5001] })
    const ignorant = verifierOf(table([0, 1]), many.subarray(0, pageBytes))
    ignorant.checkInstalled(restorer.pid, PageSet.of([base, 2]))
    t.match(ignorant, { pages: 2, mismatches: 1, differing: [base + 1] })
  })
})

t.test('lazy pages are compared as they come', async (t) => {
  const verifier = verifierOf(table([0, 3], [10, 2]), pages(1, 2, 0, 4, 0))
  verifier.checkPages(table([0, 2], [10, 1]), pages(1, 2, 4))
  verifier.checkZeros(table([2, 1], [11, 1]))
  t.match(verifier, { pages: 5, mismatches: 0 })
  verifier.checkPages(table([0, 1]), pages(1))
  t.equal(verifier.pages, 5, 'a page that comes twice is one page')

  verifier.checkZeros(table([1, 1]))
  t.match(verifier, { mismatches: 1, differing: [base + 1] })
  const flipped = pages(4)
  flipped[17] ^= 0x10
  verifier.checkPages(table([10, 1]), flipped)
  t.match(verifier, { mismatches: 2, differing: [base + 1, base + 10] })
  verifier.checkPages(table([12, 1]), pages(0))
  t.equal(verifier.mismatches, 3, 'not a page of the process')
})

t.test('a run may be longer than what is hashed at once', async (t) => {
  const data = Buffer.alloc(2100 * pageBytes)
  for (let i = 0; i < 2100; i++) data.writeUInt32LE(i + 1, i * pageBytes)
  const verifier = verifierOf(table([0, 2100]), data)
  verifier.checkPages(table([0, 2100]), data)
  t.match(verifier, { pages: 2100, mismatches: 0 })
})

t.test('only the first few are named', async (t) => {
  const verifier = new Verifier()
  verifier.checkZeros(table([0, 1000]))
  t.equal(verifier.mismatches, 1000)
  t.same(
    verifier.differing,
    Array.from({ length: 10 }, (_, i) => base + i),
  )
})

t.test('hashes come in several frames, and are complete with the last', async (t) => {
  const verifier = new Verifier()
  verifier.add(...frame(table([0, 1]), pages(1), false))
  t.notOk(verifier.complete)
  verifier.add(...frame(table([4096, 1]), pages(2), false))
  verifier.add(...frame(none, new Uint8Array(0), true))
  t.ok(verifier.complete)
  verifier.checkPages(table([0, 1], [4096, 1]), pages(1, 2))
  t.match(verifier, { pages: 2, mismatches: 0 })
})

t.test('a successor goes on with the same hashes', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pageferry-verifier-'))
  t.teardown(() => rmSync(dir, { recursive: true }))
  const file = join(dir, 'hashes')
  verifierOf(table([0, 2], [9000, 1]), pages(1, 2, 3)).save(file)
  const verifier = Verifier.load(file, { pages: 70, mismatches: 1 })
  t.match(verifier, { pages: 70, mismatches: 1, complete: true })
  verifier.checkPages(table([0, 2], [9000, 1]), pages(1, 2, 3))
  t.match(verifier, { pages: 73, mismatches: 1 })
  verifier.checkPages(table([1, 1]), pages(7))
  t.equal(verifier.mismatches, 2)
  t.match(Verifier.load(file, null), { pages: 0, mismatches: 0 })
})
