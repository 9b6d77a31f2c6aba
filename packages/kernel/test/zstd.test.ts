import fc from 'fast-check'
import t from 'tap'
import { addon } from '../src/addon.js'
import { ZstdCompressor, ZstdDecompressor } from '../src/index.js'

const pageBytes = 4096
const seed = Number(process.env.PAGEFERRY_SEED ?? Date.now() % 1_000_000)
t.comment(`PAGEFERRY_SEED=${seed}`)
const compressor = new ZstdCompressor(1)
const decompressor = new ZstdDecompressor()

/** Pages between all alike and all noise. */
const pages = fc
  .tuple(fc.integer({ min: 1, max: 64 }), fc.integer({ min: 1, max: 255 }), fc.integer())
  .map(([nrPages, alphabet, start]) => {
    const bytes = Buffer.alloc(nrPages * pageBytes)
    let state = start >>> 0
    for (let i = 0; i < bytes.length; i++) {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
      bytes[i] = (state >>> 24) % alphabet
    }
    return bytes
  })

function compress(bytes: Uint8Array): Buffer {
  const room = Buffer.alloc(bytes.length + 1024)
  const length = compressor.compress(bytes, room)
  t.ok(length > 0)
  return room.subarray(0, length)
}

/** Decompresses between two guards, and fails when one of them was written over. */
function decompress(frame: Uint8Array, nrBytes: number): Buffer | null {
  const room = Buffer.alloc(nrBytes + 2 * pageBytes, 0xa5)
  const out = room.subarray(pageBytes, pageBytes + nrBytes)
  const isRight = decompressor.decompress(frame, out)
  const guards = Buffer.concat([room.subarray(0, pageBytes), room.subarray(pageBytes + nrBytes)])
  if (!guards.every((byte) => byte === 0xa5)) throw new Error('written outside of the buffer')
  return isRight ? out : null
}

t.test('what is compressed comes back', async () => {
  fc.assert(
    fc.property(pages, (bytes) => decompress(compress(bytes), bytes.length)?.equals(bytes) === true),
    { seed, numRuns: 60 },
  )
})

t.test('what does not fit is not compressed', async () => {
  fc.assert(
    fc.property(pages, (bytes) => {
      const { length } = compress(bytes)
      return (
        compressor.compress(bytes, Buffer.alloc(length - 1)) === 0 &&
        compressor.compress(bytes, Buffer.alloc(length + 512)) === length
      )
    }),
    { seed, numRuns: 60 },
  )
})

t.test('only the exact length is accepted', async (t) => {
  const frame = compress(Buffer.alloc(8 * pageBytes, 7))
  for (const nrPages of [0, 1, 7, 9, 256]) t.equal(decompress(frame, nrPages * pageBytes), null, `${nrPages}`)
  t.ok(decompress(frame, 8 * pageBytes))
})

t.test('a frame that was cut anywhere is refused, and so is one with something behind it', async (t) => {
  const bytes = Buffer.from(Array.from({ length: pageBytes }, (_, i) => (i * i) >> 5))
  const frame = compress(bytes)
  for (let length = 0; length < frame.length; length++) {
    if (decompress(frame.subarray(0, length), bytes.length) !== null) t.fail(`cut after ${length} bytes`)
  }
  t.equal(decompress(Buffer.concat([frame, Buffer.from([0])]), bytes.length), null, 'a byte')
  t.equal(decompress(Buffer.concat([frame, frame]), 2 * bytes.length), null, 'a second frame')
  const skipped = Buffer.from([0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 1, 2])
  t.equal(decompress(Buffer.concat([frame, skipped]), bytes.length), null, 'a frame that is skipped')
  t.equal(decompress(Buffer.concat([skipped, frame]), bytes.length), null, 'likewise in front')
  t.equal(decompress(skipped, bytes.length), null, 'and alone')
})

t.test('damage is refused', async () => {
  const at = fc.array(fc.tuple(fc.nat(), fc.integer({ min: 1, max: 255 })), { minLength: 1, maxLength: 4 })
  fc.assert(
    fc.property(pages, at, (bytes, damage) => {
      const frame = Buffer.from(compress(bytes))
      for (const [where, bits] of damage) frame[where % frame.length] ^= bits
      // Not every bit of a frame means something, and two changes may undo each other.
      const content = decompress(frame, bytes.length)
      return content === null || content.equals(bytes)
    }),
    { seed, numRuns: 500 },
  )
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 2000 }), (noise) => decompress(noise, pageBytes) === null),
    { seed },
  )
})

t.test('a bomb stops at the end of the buffer, and costs no memory', async (t) => {
  const content = Buffer.alloc(256 * 2 ** 20)
  const bomb = compress(content)
  t.ok(bomb.length < 32 * 1024, `256 MiB in ${bomb.length} bytes`)
  for (const nrBytes of [0, pageBytes, 256 * pageBytes]) t.equal(decompress(bomb, nrBytes), null)

  // RFC 8878, 3.1.1: magic, no content size and no single segment, a window of 2 GiB, one raw block of one page.
  const head = Buffer.from('28b52ffd00a8018000', 'hex')
  const greedy = Buffer.concat([head, Buffer.alloc(pageBytes, 3)])
  const before = process.memoryUsage().rss
  t.ok(decompress(greedy, pageBytes), 'what it holds is right')
  for (let i = 0; i < 100; i++) decompress(greedy, pageBytes)
  const grown = process.memoryUsage().rss - before
  t.ok(grown < 64 * 2 ** 20, `a window of 2 GiB is claimed, ${grown >> 20} MiB were taken`)
})

t.test('a context of the other kind is refused', async (t) => {
  const native = addon.zstd as Record<string, (...args: unknown[]) => unknown>
  const room = Buffer.alloc(pageBytes)
  for (const wrong of [native.createDecompressor(), {}, 1]) {
    t.throws(() => native.compress(wrong, room, room), TypeError)
  }
  t.throws(() => native.decompress(native.createCompressor(1), room, room), TypeError)
})
