import { spawn, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import t, { type Test } from 'tap'
import { describeLink, rateBytes } from '../src/link/options.js'
import { nativeProgram } from '../src/native.js'

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

/** A relay in front of a server that sends everything back; its port. */
async function startRelay(
  t: Test,
  ...link: [delayUs: number, jitterUs: number, rate: number]
): Promise<number> {
  const server = createServer({ allowHalfOpen: true }, (socket: Socket) => {
    socket.pipe(socket).on('error', () => socket.destroy())
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const target = (server.address() as AddressInfo).port
  const port = await freePort()
  const args = ['127.0.0.1', '127.0.0.1', `${port}:${target}`, ...link.map(String)]
  const relay = spawn(nativeProgram('link-relay'), args, { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => {
    relay.kill('SIGKILL')
    server.close()
  })
  await once(relay.stdout, 'data')
  return port
}

/** What comes back until the end, after `bytes` and an end were sent. */
async function echo(port: number, bytes: Buffer): Promise<Buffer> {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  socket.end(bytes)
  const parts: Buffer[] = []
  for await (const part of socket) parts.push(part as Buffer)
  return Buffer.concat(parts)
}

const hash = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

t.test('every byte arrives, in order, and then the end', async (t) => {
  const links: [number, number, number][] = [
    [0, 0, 0],
    [2000, 1500, 0],
    [500, 500, 20_000_000],
  ]
  for (const link of links) {
    const port = await startRelay(t, ...link)
    const sent = [1, 4096, 1_000_000, 0, 300_001].map((length) => randomBytes(length))
    const got = await Promise.all(sent.map((bytes) => echo(port, bytes)))
    t.same(got.map(hash), sent.map(hash), `five connections at once, link ${link}`)
  }
})

t.test('a connection that breaks breaks on the other side', async (t) => {
  const port = await startRelay(t, 1000, 0, 0)
  const socket = connect({ port, host: '127.0.0.1' })
  await once(socket, 'connect')
  socket.write(randomBytes(1000))
  await once(socket, 'data')
  socket.resetAndDestroy()
  t.equal((await echo(port, Buffer.from('still there'))).toString(), 'still there')
})

t.test('wrong arguments', async (t) => {
  const here = '127.0.0.1'
  for (const args of [
    [],
    [here, here, '1', '2', '3', 'x'],
    [here, here, '7000:', '2', '3', '4'],
    ['nowhere', here, '1', '2', '3', '4'],
    [here, 'nowhere', '1', '2', '3', '4'],
  ]) {
    t.equal(spawnSync(nativeProgram('link-relay'), args, { timeout: 10_000 }).status, 2)
  }
})

t.test('a link in words and in bytes', async (t) => {
  t.equal(describeLink({ rttMs: 10, jitterMs: 0, rateMbit: 100 }), '10 ms rtt, 100 Mbit/s')
  t.equal(describeLink({ rttMs: 0, jitterMs: 0, rateMbit: 0 }), 'relay alone')
  t.equal(rateBytes({ rttMs: 0, jitterMs: 0, rateMbit: 100 }), 12_500_000)
})
