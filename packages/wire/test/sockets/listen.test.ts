import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventually } from '@pageferry/testing/eventually'
import { closing, Recorder, sendTogether } from '@pageferry/testing/sockets'
import {
  decodeFrame,
  defaultTerms,
  encodeFrame,
  type Frame,
  type FrameOf,
  maxHelloBytes,
  supportedVersions,
} from '@pageferry/wire'
import type { Lane } from '@pageferry/wire/sockets'
import { LaneServer, type LaneServerOptions } from '@pageferry/wire/sockets'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'

const migrationId = 'c0ffee'
const token = 'the-right-token'
const nrBulkLanes = 2
/** The time for a Hello is 5 s; the rest is for a machine with other things to do. */
const patienceMs = 25_000

interface Served {
  server: LaneServer
  lanes: { lane: Lane; resumed: boolean; recorder: Recorder }[]
}

async function serve(
  test: Test,
  more: Partial<Pick<LaneServerOptions, 'kinds' | 'faultPort'>> = {},
): Promise<Served> {
  const lanes: Served['lanes'] = []
  const server = await LaneServer.listen({
    host: '127.0.0.1',
    port: 0,
    migrationId,
    token,
    nrBulkLanes,
    ...more,
    onLane(lane, resumed) {
      const recorder = new Recorder()
      lanes.push({ lane, resumed, recorder })
      lane.open(recorder)
    },
  })
  test.teardown(() => server.close())
  return { server, lanes }
}

const hello = (fields: Partial<FrameOf<'hello'>> = {}): FrameOf<'hello'> => ({
  type: 'hello',
  versions: [...supportedVersions],
  migrationId,
  token,
  lane: 'control',
  laneIndex: 0,
  resume: false,
  compressions: [],
  ...fields,
})

async function open(test: Test, server: LaneServer): Promise<WebSocket> {
  const socket = new WebSocket(server.url)
  test.teardown(() => socket.terminate())
  socket.on('error', () => {})
  await new Promise((resolve, reject) => socket.once('open', resolve).once('close', reject))
  return socket
}

/** The first message, and how the connection ended; the server closes it when it refuses. */
async function answerTo(socket: WebSocket, message: Uint8Array | string) {
  const answers: Frame[] = []
  socket.on('message', (data: Buffer) => answers.push(decodeFrame(data, 'control', 'to-destination').frame))
  const closed = closing(socket)
  socket.send(message)
  return { ...(await closed), answers }
}

t.test('a Hello is answered, and the lane handed over', async (t) => {
  const { server, lanes } = await serve(t)
  const socket = await open(t, server)
  const answer = new Promise<Buffer>((resolve) => socket.once('message', resolve))
  socket.send(encodeFrame(hello({ lane: 'bulk', laneIndex: 1 })))
  const { frame } = decodeFrame(await answer, 'bulk', 'to-destination')
  const version = Math.max(...supportedVersions)
  t.same(frame, { type: 'welcome', version, nrBulkLanes, faultPort: server.port, ...defaultTerms })
  t.match(lanes, [{ lane: { kind: 'bulk', index: 1 }, resumed: false }])
  t.equal(server.url, `ws://127.0.0.1:${server.port}`)
})

t.test('a fault lane that another thread listens for', async (t) => {
  const { server, lanes } = await serve(t, { kinds: ['control', 'bulk'], faultPort: 4711 })
  const control = await open(t, server)
  const answer = new Promise<Buffer>((resolve) => control.once('message', resolve))
  control.send(encodeFrame(hello()))
  const { frame } = decodeFrame(await answer, 'control', 'to-destination')
  t.match(frame, { type: 'welcome', faultPort: 4711 })
  const refused = await answerTo(await open(t, server), encodeFrame(hello({ lane: 'fault' })))
  t.match(refused, { code: 4000, reason: 'the fault lane has another port' })
  t.match(lanes, [{ lane: { kind: 'control' } }])
  t.equal(lanes.length, 1)
})

t.test('frames right behind Hello are not lost', async (t) => {
  const { server, lanes } = await serve(t)
  const socket = await open(t, server)
  const ready: Frame = { type: 'ready', restoreMs: 1, partsJson: '' }
  sendTogether(
    socket,
    [hello(), { type: 'clockRequest' } as const, ready].map((frame) => encodeFrame(frame)),
  )
  await eventually('the frames arrive', () => lanes[0]?.recorder.frames.length === 2)
  t.same(lanes[0].recorder.frames, [{ type: 'clockRequest' }, ready])
})

const refusals: {
  what: string
  message: Uint8Array | string
  close: number
  code: string
  sentence: RegExp
}[] = [
  {
    what: 'another migration',
    message: encodeFrame(hello({ migrationId: 'beef' })),
    close: 4002,
    code: 'NOT_FOUND',
    sentence: /^this worker serves another migration than beef$/,
  },
  {
    what: 'a wrong token',
    message: encodeFrame(hello({ token: 'the-wrong-token' })),
    close: 4001,
    code: 'UNAUTHORIZED',
    sentence: /^the migration token is wrong$/,
  },
  {
    what: 'a version that it does not speak',
    message: encodeFrame(hello({ versions: [77, 78] })),
    close: 4010,
    code: 'VERSION_MISMATCH',
    sentence: /^no common protocol version: offered 77, 78, supported 2; update the older side$/,
  },
  {
    what: 'a bulk lane too many',
    message: encodeFrame(hello({ lane: 'bulk', laneIndex: nrBulkLanes })),
    close: 4000,
    code: 'BAD_REQUEST',
    sentence: /^there are 2 bulk lanes, not 3$/,
  },
  {
    what: 'a Hello that is too large',
    message: Buffer.alloc(maxHelloBytes + 1),
    close: 4101,
    code: 'PROTOCOL',
    sentence: /^a message of 4097 bytes, at most 4096 are allowed$/,
  },
  {
    what: 'a message that is no frame',
    message: Buffer.from('GET / HTTP/1.1'),
    close: 4100,
    code: 'PROTOCOL',
    sentence: /header/,
  },
  {
    what: 'a text message',
    message: encodeFrame(hello()).toString(),
    close: 4100,
    code: 'PROTOCOL',
    sentence: /^a text message is not a frame$/,
  },
  {
    what: 'another frame first',
    message: encodeFrame({ type: 'clockRequest' }),
    close: 4107,
    code: 'PROTOCOL',
    sentence: /^the first frame is clockRequest, not hello$/,
  },
]

for (const { what, message, close, code, sentence } of refusals) {
  t.test(`refuses ${what}`, async (t) => {
    const { server, lanes } = await serve(t)
    const answer = await answerTo(await open(t, server), message)
    t.match(answer, {
      code: close,
      reason: sentence,
      answers: [{ type: 'refusal', code, message: sentence }],
    })
    t.equal(answer.answers.length, 1)
    t.same(lanes, [])
  })
}

t.test('a lane can be taken once, and taken over by a peer that resumes', async (t) => {
  const { server, lanes } = await serve(t)
  const first = await open(t, server)
  const firstClosed = closing(first)
  first.send(encodeFrame(hello({ lane: 'fault' })))
  await eventually('the lane is up', () => lanes.length === 1)

  const second = await answerTo(await open(t, server), encodeFrame(hello({ lane: 'fault' })))
  t.match(second, { code: 4111, reason: 'the fault lane is connected already' })
  t.ok(lanes[0].lane.isOpen, 'the first does not suffer')

  const lossesBefore: number[] = []
  const third = await open(t, server)
  third.once('message', () => lossesBefore.push(lanes[0].recorder.losses.length))
  third.send(encodeFrame(hello({ lane: 'fault', resume: true })))
  await eventually('the lane is back', () => lanes.length === 2)
  t.match(await firstClosed, { code: 1006 })
  t.match(lanes[1], { resumed: true, lane: { kind: 'fault' } })
  t.ok(lanes[1].lane.isOpen)
  await eventually('it was welcomed', () => lossesBefore.length === 1)
  t.same(lossesBefore, [1], 'the loss was reported before')
  t.equal(lanes[0].recorder.losses.length, 1)

  third.terminate()
  await eventually('its loss is noticed', () => lanes[1].recorder.losses.length === 1)
  const fourth = await open(t, server)
  fourth.send(encodeFrame(hello({ lane: 'fault' })))
  await eventually('a dead lane is free', () => lanes.length === 3)
})

t.test('a frame of another lane closes the lane and nothing else', async (t) => {
  const { server, lanes } = await serve(t)
  const [fault, control] = [await open(t, server), await open(t, server)]
  fault.send(encodeFrame(hello({ lane: 'fault' })))
  control.send(encodeFrame(hello()))
  await eventually('both are up', () => lanes.length === 2)
  const closed = closing(fault)
  fault.send(encodeFrame({ type: 'batchAck', sequence: 1, bytes: 1 }))
  t.match(await closed, { code: 4103, reason: 'batchAck is not allowed to-source on the fault lane' })
  t.ok(lanes.find(({ lane }) => lane.kind === 'control')?.lane.isOpen)
  t.same(
    lanes.flatMap(({ recorder }) => recorder.frames),
    [],
  )
})

t.test('plain HTTP is told that this is no web server', async (t) => {
  const { server } = await serve(t)
  const response = await fetch(server.url.replace('ws:', 'http:'))
  t.equal(response.status, 426)
})

t.test('closing ends every connection, whatever it has said', async (t) => {
  const { server, lanes } = await serve(t)
  const [up, silent] = [await open(t, server), await open(t, server)]
  const raw = connect(server.port, '127.0.0.1')
  const rawClosed = new Promise((resolve) => raw.once('close', resolve).on('error', () => {}))
  await new Promise((resolve) => raw.once('connect', resolve))
  up.send(encodeFrame(hello()))
  await eventually('the lane is up', () => lanes.length === 1)
  const ends = [closing(up), closing(silent)]
  server.close()
  t.match(await Promise.all(ends), [{ code: 1000 }, { code: 1006 }])
  await rawClosed
})

/** Not all at once: what exceeds the backlog of the listening socket (511 in Node) tries again seconds later. */
async function thousandTimes(action: () => void): Promise<void> {
  for (let i = 0; i < 1000; i++) {
    action()
    if (i % 100 === 99) await sleep(20)
  }
}

t.test('only so many may keep the server waiting for their Hello', async (t) => {
  const { server, lanes } = await serve(t)
  const silent = await Promise.all(Array.from({ length: 32 }, () => open(t, server)))
  const refused = new WebSocket(server.url)
  t.teardown(() => refused.terminate())
  refused.on('error', () => {})
  t.match(await closing(refused), { code: 1006 }, 'one more is turned away')
  t.ok(
    silent.every((socket) => socket.readyState === WebSocket.OPEN),
    'the others are not',
  )
  silent[7].send(encodeFrame(hello()))
  await eventually('it is a lane', () => lanes.length === 1)
  const next = await open(t, server)
  next.send(encodeFrame(hello({ lane: 'fault' })))
  await eventually('its place is free', () => lanes.length === 2)
})

t.test('a thousand connections that say nothing', async (t) => {
  t.jobs = 2

  t.test('WebSockets without a Hello', async (t) => {
    const { server, lanes } = await serve(t)
    const codes: number[] = []
    await thousandTimes(() => {
      const socket = new WebSocket(server.url)
      socket.on('error', () => {})
      socket.once('close', (code: number) => codes.push(code))
    })
    await eventually('all have ended', () => codes.length === 1000, { timeoutMs: patienceMs })
    const timedOut = codes.filter((code) => code === 4110).length
    // On a slow machine the first are through before the last begin, which then have their time too.
    t.ok(timedOut >= 32 && timedOut <= 128, `${timedOut} were given the time to say Hello`)
    t.equal(
      codes.filter((code) => code === 1006).length,
      1000 - timedOut,
      'the others were turned away at once',
    )

    const late = await open(t, server)
    late.send(encodeFrame(hello()))
    await eventually('there is room again', () => lanes.length === 1)
  })

  t.test('sockets without a byte', async (t) => {
    const { server, lanes } = await serve(t)
    let ended = 0
    const answered = new Set<Socket>()
    await thousandTimes(() => {
      const socket = connect(server.port, '127.0.0.1')
      socket.on('error', () => {})
      socket.once('close', () => ended++)
      // Who was given time is told that it is over (408).
      socket.on('data', () => answered.add(socket))
    })
    await eventually('all have ended', () => ended === 1000, { timeoutMs: patienceMs })
    const room = 32 + 2 * (nrBulkLanes + 2)
    t.ok(answered.size >= room && answered.size <= 4 * room, `${answered.size} were given time`)

    const late = await open(t, server)
    late.send(encodeFrame(hello()))
    await eventually('there is room again', () => lanes.length === 1)
  })
})
