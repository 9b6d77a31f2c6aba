import { closeSync, openSync } from 'node:fs'
import { isKernelError } from '@pageferry/base'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive, kill } from '@pageferry/testing/processes'
import { startTarget, type Target } from '@pageferry/testing/target'
import t from 'tap'
import { memory } from '../src/index.js'

const pageBytes = 4096
const first = (target: Target) => Number(target.area >> 12n)

let target: Target
let memFd: number

t.before(async () => {
  target = await startTarget()
  memFd = openSync(`/proc/${target.pid}/mem`, 'r+')
})

t.teardown(() => {
  closeSync(memFd)
  kill(target.pid)
})

/** A run table from [page relative to the area, pages]. */
function table(...runs: [page: number, nrPages: number][]): Float64Array {
  return Float64Array.from(runs.flatMap(([page, nr]) => [first(target) + page, nr]))
}

function read(runs: Float64Array, room = 64): { pages: number; bytes: number[] } {
  const out = new Uint8Array(room * pageBytes).fill(0xee)
  const pages = memory.readRuns(target.pid, memFd, runs, runs.length / 2, out)
  const bytes = Array.from({ length: pages }, (_, page) => out[page * pageBytes])
  for (let page = 0; page < pages; page++) {
    const content = out.subarray(page * pageBytes, (page + 1) * pageBytes)
    if (!content.every((byte) => byte === content[0])) throw new Error(`page ${page} is mixed`)
  }
  return { pages, bytes }
}

t.test('readRuns reads runs one behind the other, in any order', async (t) => {
  t.strictSame(read(table([0, 3])), { pages: 3, bytes: [1, 2, 3] })
  t.strictSame(read(table([5, 2], [0, 1], [1, 1], [15, 1])), { pages: 5, bytes: [6, 7, 1, 2, 16] })
  t.strictSame(read(table([2, 4])), { pages: 4, bytes: [3, 0, 0, 6] }, 'zeros, also where nothing ever was')
  t.strictSame(read(table([0, 0], [6, 1], [7, 0])), { pages: 1, bytes: [7] }, 'empty runs')
  t.strictSame(read(new Float64Array()), { pages: 0, bytes: [] })
})

t.test('readRuns reads PROT_NONE pages and stops at what is not mapped', async (t) => {
  t.strictSame(read(table([7, 6])), { pages: 6, bytes: [8, 9, 10, 11, 12, 13] }, 'through the protected ones')
  t.strictSame(read(table([9, 1], [8, 1], [0, 1])), { pages: 3, bytes: [10, 9, 1] })
  t.strictSame(read(table([12, 4])), { pages: 1, bytes: [13] }, 'a hole inside a run')
  t.strictSame(read(table([0, 1], [11, 1], [13, 1], [1, 1])), { pages: 2, bytes: [1, 12] }, 'a hole as a run')
  t.strictSame(read(table([13, 1])), { pages: 0, bytes: [] })
  t.strictSame(read(table([14, 2])), { pages: 2, bytes: [15, 16] })
})

t.test('readRuns takes tables longer than one call', async (t) => {
  // 3000 single pages that are not adjacent, PROT_NONE among them.
  const pages = Array.from({ length: 3000 }, (_, i) => (i % 2 === 0 ? 0 : 6 + (i % 4)))
  const result = read(table(...pages.map((page): [number, number] => [page, 1])), 3000)
  t.equal(result.pages, 3000)
  t.strictSame(
    result.bytes,
    pages.map((page) => page + 1),
  )
  const adjacent = Array.from({ length: 3 }, (_, i): [number, number] => [i, 1])
  t.strictSame(read(table(...adjacent)).bytes, [1, 2, 3])
})

t.test('readRuns checks what it is given', async (t) => {
  const out = new Uint8Array(pageBytes)
  t.throws(() => memory.readRuns(target.pid, memFd, table([0, 2]), 1, out), /buffer is too small/)
  t.throws(() => memory.readRuns(target.pid, memFd, table([0, 1]), 2, out), /fewer entries/)
  t.throws(() => memory.readRuns(target.pid, memFd, Float64Array.of(Number.NaN, 1), 1, out), /out of range/)
  t.throws(() => memory.readRuns(target.pid, memFd, Float64Array.of(1, -1), 1, out), /out of range/)
})

t.test('readBytes and writeBytes', async (t) => {
  const at = target.area + 5n * 4096n + 4090n
  t.strictSame(memory.readBytes(target.pid, at, 12), Uint8Array.of(6, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7))
  memory.writeBytes(target.pid, at, new TextEncoder().encode('twelve bytes'))
  t.equal(new TextDecoder().decode(memory.readBytes(target.pid, at, 12)), 'twelve bytes')
  memory.writeBytes(target.pid, at, Uint8Array.of(6, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7))
  t.equal(memory.readBytes(target.pid, at, 0).length, 0)
  const cases: [string, () => unknown][] = [
    ['PROT_NONE', () => memory.readBytes(target.pid, target.area + 8n * 4096n, 1)],
    ['not mapped', () => memory.readBytes(target.pid, target.area + 13n * 4096n, 1)],
    ['half mapped', () => memory.readBytes(target.pid, target.area + 13n * 4096n - 8n, 16)],
    ['read-only', () => memory.writeBytes(target.pid, target.readonly, Uint8Array.of(1))],
  ]
  for (const [name, call] of cases) {
    try {
      call()
      t.fail(name)
    } catch (error) {
      t.ok(isKernelError(error, 'EFAULT'), name)
    }
  }
})

t.test('pread and pwrite go past protections', async (t) => {
  const out = new Uint8Array(2 * pageBytes)
  t.equal(memory.pread(memFd, target.area + 12n * 4096n, out), pageBytes, 'short before a hole')
  t.equal(out[pageBytes - 1], 13)
  t.throws(() => memory.pread(memFd, target.area + 13n * 4096n, out), { code: 'EIO' })
  t.equal(memory.pread(memFd, target.area + 9n * 4096n, out), out.length)
  t.equal(out[0], 10)
  t.equal(memory.pwrite(memFd, target.readonly + 1n, Uint8Array.of(0x61, 0x62)), 2)
  t.strictSame(memory.readBytes(target.pid, target.readonly, 4), Uint8Array.of(0x72, 0x61, 0x62, 0x72))
})

t.test('writeRuns', async (t) => {
  const data = new Uint8Array(4 * pageBytes)
  for (let page = 0; page < 4; page++) data.fill(101 + page, page * pageBytes, (page + 1) * pageBytes)
  memory.writeRuns(memFd, table([10, 1], [0, 2], [15, 1]), 3, data)
  t.strictSame(read(table([0, 3], [9, 3], [14, 2])).bytes, [102, 103, 3, 10, 101, 12, 15, 104])
  t.throws(() => memory.writeRuns(memFd, table([12, 2]), 1, data), { code: 'EFAULT' })
  t.throws(() => memory.writeRuns(memFd, table([13, 1]), 1, data), { code: 'EIO' })
  t.throws(() => memory.writeRuns(memFd, table([0, 5]), 1, data), /fewer bytes/)
})

t.test('a process that is gone is ESRCH', async (t) => {
  const victim = await startTarget()
  const fd = openSync(`/proc/${victim.pid}/mem`, 'r+')
  kill(victim.pid)
  await eventually('it is gone', () => !isAlive(victim.pid))
  const runs = Float64Array.of(first(victim), 1)
  const out = new Uint8Array(pageBytes)
  t.throws(() => memory.readRuns(victim.pid, fd, runs, 1, out), { code: 'ESRCH' })
  t.throws(() => memory.writeRuns(fd, runs, 1, out), { code: 'ESRCH' })
  t.equal(memory.pread(fd, victim.area, out), 0)
  closeSync(fd)
})

t.test('splitZeroPages keeps the order of what is not zero', async (t) => {
  const buf = new Uint8Array(6 * pageBytes)
  buf[1 * pageBytes] = 1
  buf[3 * pageBytes + 4095] = 2
  buf[4 * pageBytes + 2048] = 3
  const isZero = new Uint8Array(6).fill(9)
  t.equal(memory.splitZeroPages(buf, 6, isZero), 3)
  t.strictSame([...isZero], [1, 0, 1, 0, 0, 1])
  t.strictSame([buf[0], buf[pageBytes + 4095], buf[2 * pageBytes + 2048]], [1, 2, 3])
  for (let at = 0; at < pageBytes; at += 7) {
    const page = new Uint8Array(pageBytes)
    page[at] = 0x80
    if (memory.splitZeroPages(page, 1, isZero) !== 1) t.fail(`byte ${at} was overlooked`)
  }
  t.throws(() => memory.splitZeroPages(buf, 7, new Uint8Array(7)), TypeError)
})

/** XXH64 of a page, naively, from the same specification as the C code. */
function naiveHash(page: Uint8Array): bigint {
  const P1 = 0x9e3779b185ebca87n
  const P2 = 0xc2b2ae3d27d4eb4fn
  const P3 = 0x165667b19e3779f9n
  const P4 = 0x85ebca77c2b2ae63n
  const u64 = (x: bigint) => BigInt.asUintN(64, x)
  const rotl = (x: bigint, n: bigint) => u64(x << n) | (x >> (64n - n))
  const round = (acc: bigint, word: bigint) => u64(rotl(u64(acc + word * P2), 31n) * P1)
  const view = new DataView(page.buffer, page.byteOffset, page.byteLength)
  const lanes = [u64(P1 + P2), P2, 0n, u64(-P1)]
  for (let at = 0; at < page.length; at += 8) {
    lanes[(at / 8) % 4] = round(lanes[(at / 8) % 4], view.getBigUint64(at, true))
  }
  let hash = u64(rotl(lanes[0], 1n) + rotl(lanes[1], 7n) + rotl(lanes[2], 12n) + rotl(lanes[3], 18n))
  for (const lane of lanes) hash = u64((hash ^ round(0n, lane)) * P1 + P4)
  hash = u64(hash + BigInt(page.length))
  hash = u64((hash ^ (hash >> 33n)) * P2)
  hash = u64((hash ^ (hash >> 29n)) * P3)
  return hash ^ (hash >> 32n)
}

t.test('hashPages agrees with a naive XXH64 and sees every single bit', async (t) => {
  const buf = new Uint8Array(4 * pageBytes)
  for (let i = 0; i < buf.length; i++) buf[i] = i < pageBytes ? 0 : (i * 2654435761) >>> 13
  const hashes = new BigUint64Array(4)
  memory.hashPages(buf, 4, hashes)
  for (let page = 0; page < 4; page++) {
    t.equal(hashes[page], naiveHash(buf.subarray(page * pageBytes, (page + 1) * pageBytes)))
  }
  const seen = new Set<bigint>()
  const page = buf.slice(pageBytes, 2 * pageBytes)
  const one = new BigUint64Array(1)
  for (let bit = 0; bit < pageBytes * 8; bit++) {
    page[bit >> 3] ^= 1 << (bit & 7)
    memory.hashPages(page, 1, one)
    seen.add(one[0])
    page[bit >> 3] ^= 1 << (bit & 7)
  }
  seen.add(hashes[1])
  t.equal(seen.size, pageBytes * 8 + 1, 'all different')
  t.throws(() => memory.hashPages(buf, 5, new BigUint64Array(5)), TypeError)
})
