import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { createServer } from 'node:net'
import { eventually } from '@pageferry/testing/eventually'
import { closing, Recorder, sendTogether, webSocketServer } from '@pageferry/testing/sockets'
import {
  decodeFrame,
  decodeHello,
  defaultTerms,
  encodeFrame,
  type Frame,
  type FrameOf,
  type LaneTerms,
  minBulkWindowBytes,
  supportedVersions,
} from '@pageferry/wire'
import { type DialOptions, dial, LaneServer } from '@pageferry/wire/sockets'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'

const common = { migrationId: 'c0ffee', token: 'secret', kind: 'control', index: 0, resume: false } as const
const welcome: FrameOf<'welcome'> = {
  ...{ type: 'welcome', version: Math.max(...supportedVersions), nrBulkLanes: 3, faultPort: 4711 },
  ...defaultTerms,
}

/** A source that answers a Hello with whatever a test wants. */
async function fakeSource(test: Test, answer: (socket: WebSocket, hello: Buffer) => void): Promise<string> {
  const { url } = await webSocketServer(test, (socket) => {
    socket.once('message', (hello: Buffer) => answer(socket, hello))
  })
  return url
}

async function realSource(test: Test, wanted?: LaneTerms) {
  const recorder = new Recorder()
  const terms: LaneTerms[] = []
  const opened: { kind: string; index: number; resumed: boolean }[] = []
  const server = await LaneServer.listen({
    host: '127.0.0.1',
    port: 0,
    migrationId: common.migrationId,
    token: common.token,
    nrBulkLanes: 3,
    terms: wanted,
    onLane(lane, resumed) {
      terms.push(lane.terms)
      opened.push({ kind: lane.kind, index: lane.index, resumed })
      lane.open(recorder)
      lane.send(clockReply)
    },
  })
  test.teardown(() => server.close())
  return { server, recorder, opened, terms }
}

const clockReply = {
  type: 'clockReply',
  monotonicNs: 1n,
  boottimeNs: 2n,
  kernelMonotonicNs: 3n,
  kernelBoottimeNs: 4n,
} as const

t.test('a lane is connected, and carries what the source sends right behind its Welcome', async (t) => {
  const { server, recorder, opened } = await realSource(t)
  const { lane, nrBulkLanes, faultPort } = await dial({ ...common, url: server.url })
  t.teardown(() => lane.close())
  t.equal(nrBulkLanes, 3)
  t.equal(faultPort, server.port)
  t.same(opened, [{ kind: 'control', index: 0, resumed: false }])
  const mine = new Recorder()
  lane.open(mine)
  lane.send({ type: 'clockRequest' })
  await eventually('both ways', () => mine.frames.length === 1 && recorder.frames.length === 1)
  t.same(mine.frames, [clockReply])
  t.same(recorder.frames, [{ type: 'clockRequest' }])
})

t.test('frames in one piece with Welcome wait until the lane is opened', async (t) => {
  const commit: Frame = { type: 'commit' }
  const url = await fakeSource(t, (socket) => {
    sendTogether(
      socket,
      [welcome, commit, { type: 'released' } as const].map((frame) => encodeFrame(frame)),
    )
  })
  const { lane } = await dial({ ...common, url })
  t.teardown(() => lane.close())
  await new Promise((resolve) => setTimeout(resolve, 20))
  const mine = new Recorder()
  lane.open(mine)
  await eventually('they arrive', () => mine.frames.length === 2)
  t.same(mine.frames, [{ type: 'commit' }, { type: 'released' }])
})

t.test('its Hello says who it is', async (t) => {
  let hello: unknown
  const url = await fakeSource(t, (socket, data) => {
    hello = decodeHello(data)
    socket.send(encodeFrame(welcome))
  })
  const { lane } = await dial({ ...common, url, kind: 'bulk', index: 2, resume: true })
  t.teardown(() => lane.close())
  t.same(hello, {
    type: 'hello',
    versions: [...supportedVersions],
    migrationId: 'c0ffee',
    token: 'secret',
    lane: 'bulk',
    laneIndex: 2,
    resume: true,
    compressions: ['zstd'],
  })
  t.match(lane, { kind: 'bulk', index: 2 })
})

t.test('both ends of a lane go by what its Welcome says', async (t) => {
  const wanted = { compression: 'zstd', windowBytes: 2 * minBulkWindowBytes } as const
  const { server, terms } = await realSource(t, wanted)
  for (const kind of ['control', 'bulk'] as const) {
    const { lane } = await dial({ ...common, url: server.url, kind })
    t.teardown(() => lane.close())
    t.same(lane.terms, wanted)
    t.same(terms.pop(), wanted)
  }

  const old = new WebSocket(server.url)
  t.teardown(() => old.terminate())
  await once(old, 'open')
  old.send(
    encodeFrame({
      ...{
        type: 'hello',
        versions: [...supportedVersions],
        migrationId: common.migrationId,
        token: common.token,
      },
      ...{ lane: 'bulk', laneIndex: 1, resume: false, compressions: ['of-the-future'] },
    }),
  )
  const [answer] = (await once(old, 'message')) as [Buffer]
  const welcomed = decodeFrame(answer, 'bulk', 'to-destination').frame
  t.match(welcomed, { type: 'welcome', compression: 'none' }, 'a destination that cannot gets pages')
  t.same(terms.pop(), { ...wanted, compression: 'none' })
})

t.test('what the source refuses is its error', async (t) => {
  const { server, opened } = await realSource(t)
  const cases: [options: Partial<DialOptions>, code: string, message: RegExp][] = [
    [{ token: 'guessed' }, 'UNAUTHORIZED', /token is wrong/],
    [{ migrationId: 'other' }, 'NOT_FOUND', /another migration than other/],
    [{ kind: 'bulk', index: 3 }, 'BAD_REQUEST', /there are 3 bulk lanes/],
  ]
  for (const [options, code, message] of cases) {
    await t.rejects(dial({ ...common, url: server.url, ...options }), {
      name: 'RemoteError',
      role: 'source',
      code,
      message,
    })
  }
  const { lane } = await dial({ ...common, url: server.url })
  t.teardown(() => lane.close())
  await t.rejects(dial({ ...common, url: server.url }), { role: 'source', message: /connected already/ })
  t.equal(opened.length, 1)
})

t.test('an answer that is none closes the connection and says why', async (t) => {
  const cases: [what: string, answer: Uint8Array | string, code: number, message: RegExp][] = [
    ['another frame', encodeFrame({ type: 'commit' }), 4107, /commit instead of welcome/],
    [
      'a frame that it never gets',
      encodeFrame({ type: 'clockRequest' }),
      4103,
      /clockRequest is not allowed/,
    ],
    [
      'a version that was not offered',
      encodeFrame({ ...welcome, version: 9 }),
      4106,
      /version 9 was not offered/,
    ],
    ['no frame', Buffer.from('hello yourself'), 4100, /header/],
    ['text', encodeFrame(welcome).toString(), 4100, /text message/],
  ]
  for (const [what, answer, code, message] of cases) {
    let closed: Promise<{ code: number }> | undefined
    const url = await fakeSource(t, (socket) => {
      closed = closing(socket)
      socket.send(answer)
    })
    await t.rejects(dial({ ...common, url }), { code: 'PROTOCOL', message }, what)
    t.match(await closed, { code }, what)
  }
})

t.test('a source that cannot be reached', async (t) => {
  const closedPort = createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => closedPort.once('listening', resolve))
  const { port } = closedPort.address() as AddressInfo
  await new Promise((resolve) => closedPort.close(resolve))
  await t.rejects(dial({ ...common, url: `ws://127.0.0.1:${port}` }), {
    code: 'PEER_UNREACHABLE',
    message: /^control lane to ws:.*ECONNREFUSED/,
  })

  const url = await fakeSource(t, (socket) => socket.close(4012))
  await t.rejects(dial({ ...common, url }), {
    code: 'PEER_UNREACHABLE',
    message: /closed \(WORKLOAD_EXITED\)/,
  })

  const cut = await fakeSource(t, (socket) => socket.terminate())
  await t.rejects(dial({ ...common, url: cut }), { code: 'PEER_UNREACHABLE' })
})

t.test('a source that says nothing', async (t) => {
  t.jobs = 2
  t.test('to a Hello', async (t) => {
    let closed: Promise<unknown> | undefined
    const url = await fakeSource(t, (socket) => {
      closed = closing(socket)
    })
    await t.rejects(dial({ ...common, url }), { code: 'TIMEOUT', message: /no answer to Hello/ })
    await closed
  })
  t.test('to a connection', async (t) => {
    const silent = createServer(() => {}).listen(0, '127.0.0.1')
    await new Promise((resolve) => silent.once('listening', resolve))
    const { port } = silent.address() as AddressInfo
    t.teardown(() => silent.close())
    await t.rejects(dial({ ...common, url: `ws://127.0.0.1:${port}` }), {
      code: /^(TIMEOUT|PEER_UNREACHABLE)$/,
    })
  })
})
