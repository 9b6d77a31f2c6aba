import assert from 'node:assert/strict'
import fc from 'fast-check'
import t from 'tap'
import { criu } from '#generated/criu'
import {
  decodePagemap,
  encodePagemap,
  type PagemapTable,
  PE_LAZY,
  PE_PARENT,
  PE_PRESENT,
} from '../src/index.js'
import { fromHex, toHex } from './hex.js'

const magics = '19435654 25400856'

function table(pagesId: number, entries: readonly (readonly [number, number, number])[]): PagemapTable {
  const runs = Float64Array.from(entries.flatMap((entry) => entry.slice(0, 2)))
  return { pagesId, runs, nrRuns: entries.length, flags: Uint8Array.from(entries, (entry) => entry[2]) }
}

t.test('the scenario of the mailing list, byte for byte', async (t) => {
  const scenario = table(1, [
    [0x10, 10, PE_PARENT],
    [0x1a, 6, PE_LAZY],
    [0x7ffffffde, 1, PE_PRESENT],
  ])
  const bytes = fromHex(`${magics}
    02000000 0801
    0a000000 08808004 100a 2001 280a              # 0x10000: 10 pages PARENT
    0a000000 0880c006 1006 2002 2806              # 0x1a000: 6 pages LAZY
    0e000000 0880c0f7ffffff1f 1001 2004 2801      # 0x7ffffffde000: a page of the stack PRESENT`)
  t.equal(toHex(encodePagemap(scenario)), toHex(bytes))
  t.strictSame(decodePagemap(bytes), scenario)
})

t.test('agrees with the generated codec', async (_t) => {
  const entry = fc.tuple(
    fc.nat({ max: 2 ** 20 }),
    fc.integer({ min: 1, max: 2 ** 31 - 1 }),
    fc.constantFrom(1, 2, 4, 6),
  )
  const property = (pagesId: number, parts: [number, number, number][]) => {
    let end = 0
    const entries = parts.map(([gap, count, flags]) => {
      const first = end + gap
      end = first + count
      return [first, count, flags] as const
    })
    const mine = encodePagemap(table(pagesId, entries))
    assert.equal(toHex(mine), toHex(naiveEncode(pagesId, entries)))
    assert.deepStrictEqual(decodePagemap(mine), table(pagesId, entries))
  }
  fc.assert(fc.property(fc.nat({ max: 2 ** 32 - 1 }), fc.array(entry, { maxLength: 30 }), property))
})

/** The same file through the generated messages, one at a time. */
function naiveEncode(pagesId: number, entries: readonly (readonly [number, number, number])[]): Uint8Array {
  const messages = [criu.PagemapHead.encode({ pagesId }).finish()]
  for (const [first, count, flags] of entries) {
    // protobufjs also takes numbers, which are exact for these.
    const fields = { vaddr: first * 4096, compatNrPages: count, flags, nrPages: count } as never
    messages.push(criu.PagemapEntry.encode(fields).finish())
  }
  const framed = messages.map((message) => [Uint8Array.of(message.length, 0, 0, 0), message])
  return Buffer.concat([fromHex(magics), ...framed.flat()])
}

t.test('older and newer entries', async (t) => {
  const bytes = fromHex(`${magics} 02000000 0805
    06000000 08808004 1002                        # no flags: PRESENT
    08000000 0880e004 1002 1801                   # in_parent
    1a000000 0880c006 1002 2002 fa3f0141 3501020304 390102030405060708`)
  const expected = table(5, [
    [0x10, 2, PE_PRESENT],
    [0x13, 2, PE_PARENT],
    [0x1a, 2, PE_LAZY],
  ])
  t.strictSame(decodePagemap(bytes), expected)
})

t.test('malformed pagemaps', async (t) => {
  const head = `${magics} 02000000 0801`
  const cases: Record<string, [string, RegExp]> = {
    empty: ['', /wrong magic/],
    'no head': [magics, /the head is missing/],
    'head without id': [`${magics} 00000000`, /no pages id/],
    'wrong magic': ['19435654 26400856 02000000 0801', /wrong magic/],
    'cut length': [`${head} 0a0000`, /a length is cut off/],
    'cut entry': [`${head} 0a000000 08808004 100a 2001 28`, /a message is cut off/],
    'number over the end of its entry': [`${head} 05000000 1001 088080`, /a number is cut off/],
    'huge length': [`${head} ffffff7f 08808004 100a`, /a message of 2147483647 bytes/],
    'no vaddr': [`${head} 02000000 100a`, /a required field/],
    'no compat_nr_pages': [`${head} 04000000 08808004`, /a required field/],
    'not aligned': [`${head} 06000000 08818004 1001`, /out of range/],
    'no pages': [`${head} 06000000 08808004 1000`, /out of range/],
    'unknown flag': [`${head} 08000000 08808004 1001 2008`, /out of range/],
    'no flag': [`${head} 08000000 08808004 1001 2000`, /out of range/],
    'out of order': [`${head} 06000000 0880c006 1001 06000000 08808004 1001`, /out of order/],
    overlap: [`${head} 06000000 08808004 1002 06000000 0880a004 1001`, /out of order/],
    'kernel address': [`${head} 0a000000 0880808080808040 1001`, /out of range/],
    'number of ten bytes': [`${head} 0d000000 08ffffffffffffffffff01 1001`, /a number is too large/],
    'group wire type': [`${head} 07000000 08808004 1001 0b`, /a field is cut off/],
    'blob over the end': [`${head} 08000000 08808004 1001 3205`, /a field is cut off/],
  }
  for (const [name, [text, message]] of Object.entries(cases)) {
    t.throws(() => decodePagemap(fromHex(text)), { code: 'PROTOCOL', message }, name)
  }
})

t.test('any bytes give a table or a protocol error', async (_t) => {
  const good = encodePagemap(
    table(
      1,
      Array.from({ length: 20 }, (_, i) => [1000 + 3 * i, 1 + (i % 3), PE_LAZY] as const),
    ),
  )
  const property = (changes: [number, number][], keep: number) => {
    const bytes = good.slice(0, 1 + (keep % good.length))
    for (const [at, value] of changes) bytes[at % bytes.length] = value
    try {
      decodePagemap(bytes)
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'PROTOCOL')
    }
  }
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(), fc.nat({ max: 255 })), { maxLength: 4 }), fc.nat(), property),
    { numRuns: 500 },
  )
})

t.test('wrong tables are refused', async (t) => {
  const bad = {
    overlap: table(1, [
      [1, 2, 1],
      [2, 1, 1],
    ]),
    order: table(1, [
      [5, 1, 1],
      [2, 1, 1],
    ]),
    empty: table(1, [[1, 0, 1]]),
    fraction: table(1, [[1.5, 1, 1]]),
    'not a number': table(1, [[Number.NaN, 1, 1]]),
    'too high': table(1, [[2 ** 36 - 1, 2, 1]]),
    'unknown flag': table(1, [[1, 1, 8]]),
    'no flag': table(1, [[1, 1, 0]]),
    'pages id': table(-1, []),
    'short table': { ...table(1, [[1, 1, 1]]), nrRuns: 2 },
  }
  for (const [name, wrong] of Object.entries(bad))
    t.throws(() => encodePagemap(wrong), { code: 'INTERNAL' }, name)
})

t.test('a million entries', async (t) => {
  const nrRuns = 1e6
  const runs = new Float64Array(2 * nrRuns)
  for (let i = 0; i < nrRuns; i++) runs.set([0x7f0000000 + 2 * i, 1], 2 * i)
  const big = { pagesId: 1, runs, nrRuns, flags: new Uint8Array(nrRuns).fill(PE_LAZY) }
  const start = performance.now()
  const bytes = encodePagemap(big)
  const middle = performance.now()
  const decoded = decodePagemap(bytes)
  t.comment(`encode ${Math.round(middle - start)} ms, decode ${Math.round(performance.now() - middle)} ms`)
  t.ok(Buffer.from(decoded.runs.buffer).equals(Buffer.from(runs.buffer)))
  t.equal(decoded.nrRuns, nrRuns)
})
