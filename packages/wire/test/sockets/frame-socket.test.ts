import { createServer, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { seededRandom } from '@pageferry/base'
import { eventually } from '@pageferry/testing/eventually'
import { maxPayloadBytes } from '@pageferry/wire'
import { FrameSocket } from '@pageferry/wire/sockets'
import t, { type Test } from 'tap'

const seed = Number(process.env.PAGEFERRY_SEED ?? Math.floor(Math.random() * 2 ** 31))

/** Numbers below `limit`, the same for the same seed. */
function randomFrom(start: number): (limit: number) => number {
  const random = seededRandom(start)
  return (limit) => Math.floor(random() * limit)
}

/** A binary frame of a server, RFC 6455 section 5.2; every byte of it follows from its length. */
function frameOf(length: number): Buffer {
  const header = length < 126 ? 2 : length < 65_536 ? 4 : 10
  const frame = Buffer.alloc(header + length)
  frame[0] = 0x82
  if (length < 126) frame[1] = length
  else if (length < 65_536) {
    frame[1] = 126
    frame.writeUInt16BE(length, 2)
  } else {
    frame[1] = 127
    frame.writeBigUInt64BE(BigInt(length), 2)
  }
  for (let i = 0; i < length; i++) frame[header + i] = (length + 7 * i) & 0xff
  return frame
}

async function connected(test: Test): Promise<{ peer: Socket; socket: FrameSocket }> {
  let peer: Socket | null = null
  const server = createServer({ noDelay: true }, (accepted) => {
    peer = accepted
    accepted.on('error', () => {})
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  const socket = new FrameSocket(new URL(`ws://127.0.0.1:${port}`))
  socket.on('error', () => {})
  await eventually('it is accepted', () => peer !== null)
  test.teardown(() => {
    socket.destroy()
    peer?.destroy()
    server.close()
  })
  return { peer: peer as unknown as Socket, socket }
}

/** Takes copies: what is handed out is overwritten later. */
function collect(socket: FrameSocket): { chunks: Buffer[]; bytes(): number } {
  const chunks: Buffer[] = []
  socket.on('data', (chunk: Buffer) => chunks.push(Buffer.from(chunk)))
  return { chunks, bytes: () => chunks.reduce((sum, { length }) => sum + length, 0) }
}

/** Whether a chunk is nothing but whole frames. */
function isAligned(chunk: Buffer): boolean {
  let at = 0
  while (at < chunk.length) {
    const short = chunk[at + 1] & 0x7f
    if (short < 126) at += 2 + short
    else if (short === 126) at += 4 + chunk.readUInt16BE(at + 2)
    else at += 10 + Number(chunk.readBigUInt64BE(at + 2))
  }
  return at === chunk.length
}

const lengths = [
  0,
  1,
  125,
  126,
  127,
  4096,
  65_535,
  65_536,
  100_000,
  maxPayloadBytes,
  3,
  maxPayloadBytes,
  70_000,
]

t.test(`whole frames, whatever the pieces in which they come (seed ${seed})`, async (t) => {
  const random = randomFrom(seed)
  const { peer, socket } = await connected(t)
  const got = collect(socket)
  socket.alignFrames()
  const stream = Buffer.concat([...lengths, ...lengths, ...lengths].map(frameOf))
  for (let at = 0; at < stream.length; ) {
    const end = at + 1 + random(random(4) === 0 ? 20 : 300_000)
    peer.write(stream.subarray(at, end))
    at = end
    if (random(3) === 0) await sleep(random(3))
    if (random(10) === 0) {
      socket.pause()
      setTimeout(() => socket.resume(), random(20))
    }
  }
  await eventually('all has come', () => got.bytes() === stream.length, { timeoutMs: 20_000 })
  t.ok(Buffer.concat(got.chunks).equals(stream), 'byte for byte')
  t.ok(got.chunks.every(isAligned))
})

t.test('cut at every position', async (t) => {
  const { peer, socket } = await connected(t)
  const got = collect(socket)
  socket.alignFrames()
  const stream = Buffer.concat([5, 130, 0, 66_000, 2].map(frameOf))
  const cuts = [...Array.from({ length: 150 }, (_, i) => i + 1), ...[66_140, 66_150, 66_151, 66_152, 66_153]]
  for (const [turn, cut] of cuts.entries()) {
    peer.write(stream.subarray(0, cut))
    await new Promise((resolve) => setImmediate(resolve))
    peer.write(stream.subarray(cut))
    await eventually('it has come', () => got.bytes() === (turn + 1) * stream.length)
  }
  t.ok(got.chunks.every(isAligned))
  t.ok(Buffer.concat(got.chunks).equals(Buffer.concat(cuts.map(() => stream))))
})

t.test('before the frames, and what is none, goes through as it comes', async (t) => {
  const { peer, socket } = await connected(t)
  const got = collect(socket)
  peer.write('HTTP/1.1 101 Switching')
  await eventually('half of a line', () => got.bytes() === 22)
  socket.alignFrames()
  const tooLong = frameOf(100_000)
  tooLong.writeBigUInt64BE(2n ** 40n, 2)
  peer.write(tooLong)
  await eventually('a frame that nobody could hold', () => got.bytes() >= 22 + 10)
  peer.end()
  await eventually('its end', () => socket.readableEnded)
})
