import { once } from 'node:events'
import type { PageferryError } from '@pageferry/base'
import { eventually } from '@pageferry/testing/eventually'
import { closing, Recorder } from '@pageferry/testing/sockets'
import {
  decodeFrame,
  encodeFrame,
  type Frame,
  type FrameOf,
  faultPendingMax,
  supportedCompressions,
  supportedVersions,
} from '@pageferry/wire'
import { Lane } from '@pageferry/wire/sockets'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import { FaultLane } from '../src/lanes/fault-lane.js'
import type { FaultTarget } from '../src/lanes/fault-messages.js'
import { SentBitmap } from '../src/lazy/sent-bitmap.js'
import { Receiver, startPages } from './fixtures/workload.js'

const nrPages = 200
const asId = 1
const round = 2
const [migrationId, token] = ['c0ffee', 'the-right-token']

interface Served {
  fault: FaultLane
  port: number
  connected: boolean[]
  losses: PageferryError[]
}

async function serve(test: Test, at = 0): Promise<Served> {
  const connected: boolean[] = []
  const losses: PageferryError[] = []
  const { lane: fault, port } = await FaultLane.listen(
    { host: '127.0.0.1', port: at, migrationId, token, nrBulkLanes: 1 },
    {
      onConnected: (resumed) => connected.push(resumed),
      onLost: (error) => losses.push(error),
    },
  )
  test.teardown(() => fault.close())
  return { fault, port, connected, losses }
}

/** Dials as the destination does, and answers its end of the lane. */
async function dial(
  test: Test,
  { port }: Served,
  hello: Partial<FrameOf<'hello'>> = {},
): Promise<{ socket: WebSocket; first: Frame }> {
  const socket = new WebSocket(`ws://127.0.0.1:${port}`)
  test.teardown(() => socket.terminate())
  socket.on('error', () => {})
  const first = new Promise<Frame>((resolve) => {
    socket.once('message', (data: Buffer) => {
      socket.pause()
      resolve(decodeFrame(data, 'fault', 'to-destination').frame)
    })
  })
  socket.once('open', () =>
    socket.send(
      encodeFrame({
        ...{ type: 'hello', versions: [...supportedVersions], migrationId, token, laneIndex: 0 },
        ...{ lane: 'fault', resume: false, compressions: [...supportedCompressions], ...hello },
      }),
    ),
  )
  return { socket, first: await first }
}

const request = (page: number, nr = 1): Frame => {
  return { type: 'pageRequest', asId, round, requestId: 7, page, nrPages: nr, ahead: false }
}

t.test('the fault lane, in its thread', async (t) => {
  const workload = await startPages(t, nrPages)
  const { pid, first } = workload
  const lazy = Float64Array.of(first, nrPages)
  const target = (): FaultTarget => ({ pid, asId, round, sent: new SentBitmap(lazy).shared })

  await t.test('requests are answered, also those that came before it was told what to serve', async (t) => {
    const setup = await serve(t)
    const { socket, first: welcome } = await dial(t, setup)
    t.match(welcome, { type: 'welcome', nrBulkLanes: 1, faultPort: setup.port })
    await eventually('it is announced', () => setup.connected.length === 1)
    t.same(setup.connected, [false])
    const lane = new Lane(socket, 'fault', 0, 'to-destination')
    const replies = new Recorder()
    lane.open(replies)
    lane.send(request(first + 10, 3))
    lane.send({ type: 'discard', asId, round, runs: Float64Array.of(first + 50, 5) })
    await new Promise((resolve) => setTimeout(resolve, 50))
    t.same(replies.frames, [])
    const sent = new SentBitmap(lazy)
    setup.fault.serve({ pid, asId, round, sent: sent.shared })
    lane.send(request(first + 20))
    await eventually('both are answered', () => replies.frames.length === 2)
    const answered = new Receiver(first)
    for (const [i, frame] of replies.frames.entries()) {
      if (frame.type !== 'pageReply') throw new Error(frame.type)
      answered.note(frame.runs, frame.zeroRuns, replies.payloads[i])
    }
    t.same(answered.wrong([10, 11, 12, 20]), [])
    const faults: number[] = []
    await eventually('the worker can see it', () => {
      setup.fault.feed.takeFaults((page) => faults.push(page))
      return faults.length === 2
    })
    t.same(faults, [first + 10, first + 20])
    const done = [10, 11, 12, 20, ...[50, 51, 52, 53, 54]]
    t.same(
      Array.from({ length: nrPages }, (_, i) => i).filter((i) => sent.has(first + i)),
      done,
      'what was sent or discarded need not be pushed',
    )
    t.ok(setup.fault.feed.bytesSent > 3 * 4096)

    socket.terminate()
    await eventually('its loss is said', () => setup.losses.length === 1)
    const again = await dial(t, setup, { resume: true })
    t.match(again.first, { type: 'welcome' })
    await eventually('and that it is back', () => setup.connected.length === 2)
    t.same(setup.connected, [false, true])
    const next = new Lane(again.socket, 'fault', 0, 'to-destination')
    const more = new Recorder()
    next.open(more)
    next.send(request(first + 30))
    await eventually('it is served as before', () => more.frames.length === 1)
  })

  await t.test('what breaks the protocol closes the lane', async (t) => {
    for (const [what, frame, code] of [
      ['a page that is not lazy', request(first + nrPages), 4108],
      ['another round', { ...request(first), round: 9 }, 4107],
    ] as [string, Frame, number][]) {
      const setup = await serve(t)
      setup.fault.serve(target())
      const { socket } = await dial(t, setup)
      socket.resume()
      const closed = closing(socket)
      socket.send(encodeFrame(frame))
      t.match(await closed, { code }, what)
      await eventually('its loss is said', () => setup.losses.length === 1)
    }
  })

  await t.test('more requests than may be open, before anything is served', async (t) => {
    const setup = await serve(t)
    const { socket } = await dial(t, setup)
    socket.resume()
    const closed = closing(socket)
    for (let i = 0; i <= faultPendingMax; i++) socket.send(encodeFrame(request(first)))
    t.match(await closed, { code: 4109 })
  })

  await t.test('no other lane is dialled at its port, and it says Hello in time', async (t) => {
    const setup = await serve(t)
    for (const lane of ['control', 'bulk'] as const) {
      const other = await dial(t, setup, { lane })
      t.match(other.first, { type: 'refusal', code: 'BAD_REQUEST' }, lane)
    }
    t.match((await dial(t, setup, { token: 'guessed' })).first, { type: 'refusal', code: 'UNAUTHORIZED' })
    t.same(setup.connected, [])
    const silent = new WebSocket(`ws://127.0.0.1:${setup.port}`)
    t.teardown(() => silent.terminate())
    silent.on('error', () => {})
    const { code } = await closing(silent)
    t.equal(code, 4110)
  })

  await t.test('only so many may keep it waiting for their Hello', async (t) => {
    const setup = await serve(t)
    const silent = Array.from({ length: 32 }, () => new WebSocket(`ws://127.0.0.1:${setup.port}`))
    t.teardown(() => {
      for (const socket of silent) socket.terminate()
    })
    for (const socket of silent) socket.on('error', () => {})
    await Promise.all(silent.map((socket) => once(socket, 'open')))
    const refused = new WebSocket(`ws://127.0.0.1:${setup.port}`)
    refused.on('error', () => {})
    t.match(await closing(refused), { code: 1006 }, 'one more is turned away')
    silent[3].terminate()
    await eventually('there is room again', () => silent[3].readyState === WebSocket.CLOSED)
    t.match((await dial(t, setup)).first, { type: 'welcome' })
  })

  await t.test('a successor takes its port, and says so when it cannot', async (t) => {
    const setup = await serve(t)
    await t.rejects(serve(t, setup.port), { message: /EADDRINUSE/ })
    const { socket } = await dial(t, setup)
    socket.resume()
    const closed = closing(socket)
    setup.fault.close()
    await closed
    const successor = await serve(t, setup.port)
    t.equal(successor.port, setup.port)
    t.match((await dial(t, successor, { resume: true })).first, { type: 'welcome', faultPort: setup.port })
  })
})
