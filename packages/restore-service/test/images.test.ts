import { imagePieceBytes } from '@pageferry/wire'
import t from 'tap'
import { ImageReceiver } from '../src/rounds/images.js'

interface Done {
  name: string
  bytes: Uint8Array
}

function receiver(): { images: ImageReceiver; done: Done[] } {
  const done: Done[] = []
  return { images: new ImageReceiver((name, bytes) => done.push({ name, bytes })), done }
}

function add(
  images: ImageReceiver,
  name: string,
  content: Uint8Array,
  offset: number,
  totalBytes = content.length,
): void {
  const payload = content.subarray(offset, Math.min(offset + imagePieceBytes, totalBytes))
  images.add({ type: 'image', asId: 1, round: 1, name, totalBytes, offset }, payload)
}

const pattern = (bytes: number) =>
  Buffer.from(Array.from({ length: bytes }, (_, i) => (i * 31 + (i >> 8)) & 0xff))

t.test('images are put together from their pieces', async (t) => {
  const { images, done } = receiver()
  const small = pattern(100)
  add(images, 'mm-1.img', small, 0)
  t.equal(done.length, 1)
  t.equal(done[0].name, 'mm-1.img')
  t.ok(small.equals(done[0].bytes))

  const [large, other] = [pattern(3 * imagePieceBytes + 17), pattern(2 * imagePieceBytes)]
  for (let offset = 0; offset < large.length; offset += imagePieceBytes) {
    add(images, 'pagemap-1.img', large, offset)
    if (offset < other.length) add(images, 'pages-1.img', other, offset)
  }
  t.same(
    done.slice(1).map(({ name }) => name),
    ['pages-1.img', 'pagemap-1.img'],
  )
  t.ok(other.equals(done[1].bytes))
  t.ok(large.equals(done[2].bytes))

  add(images, 'empty.img', Buffer.alloc(0), 0)
  t.match(done[3], { name: 'empty.img', bytes: { length: 0 } })
  add(images, 'mm-1.img', pattern(7), 0)
  t.equal(done[4].bytes.length, 7, 'the next round brings it again')
})

t.test('pieces that do not follow each other are refused', async (t) => {
  const content = pattern(4 * imagePieceBytes)
  const refused = { code: 'PROTOCOL', closeCode: 4107 }
  const { images, done } = receiver()
  t.throws(() => add(images, 'a', content, imagePieceBytes), refused, 'none came before')
  add(images, 'a', content, 0)
  t.throws(() => add(images, 'a', content, 2 * imagePieceBytes), refused, 'one is missing')
  add(images, 'a', content, imagePieceBytes)
  t.throws(() => add(images, 'a', content, imagePieceBytes), refused, 'it came already')
  t.throws(
    () => add(images, 'a', content, 2 * imagePieceBytes, 3 * imagePieceBytes),
    refused,
    'another length',
  )
  t.throws(() => add(images, 'b', content, 2 * imagePieceBytes), refused, 'another image')
  add(images, 'a', content, 2 * imagePieceBytes)
  add(images, 'a', content, 3 * imagePieceBytes)
  t.ok(content.equals(done[0].bytes), 'what was refused has changed nothing')
  t.throws(() => add(images, 'a', content, 3 * imagePieceBytes), refused, 'it is complete')
})

t.test('only a few images may be under way', async (t) => {
  const content = pattern(2 * imagePieceBytes)
  const { images, done } = receiver()
  for (const name of ['a', 'b', 'c', 'd']) add(images, name, content, 0)
  t.throws(() => add(images, 'e', content, 0), { code: 'PROTOCOL', closeCode: 4101 })
  add(images, 'a', content, imagePieceBytes)
  add(images, 'e', content, 0)
  t.equal(done.length, 1)
})

t.test('and only so many in all', async (t) => {
  const { images, done } = receiver()
  for (let i = 0; i < 20_000; i++) add(images, `core-${i}.img`, Buffer.alloc(1), 0)
  t.throws(() => add(images, 'core-20000.img', Buffer.alloc(1), 0), { code: 'PROTOCOL', closeCode: 4101 })
  t.equal(done.length, 20_000)
})

t.test('an announced size alone takes no memory', async (t) => {
  const { images } = receiver()
  const content = pattern(imagePieceBytes)
  const before = process.memoryUsage().arrayBuffers
  for (const name of ['a', 'b', 'c', 'd']) add(images, name, content, 0, 256 * imagePieceBytes)
  const grown = process.memoryUsage().arrayBuffers - before
  t.ok(grown <= 4 * 3 * imagePieceBytes, `${grown} bytes for four images of 256 MiB that have just begun`)
})
