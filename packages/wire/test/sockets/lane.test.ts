import { once } from 'node:events'
import { mock } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError, pageBytes } from '@pageferry/base'
import { eventually } from '@pageferry/testing/eventually'
import {
  closing,
  laneAndPeer,
  lanePair,
  Recorder,
  sendTogether,
  webSocketServer,
} from '@pageferry/testing/sockets'
import { encodeFrame, encodeHeader, type Frame, laneLimits, WireError } from '@pageferry/wire'
import { Lane } from '@pageferry/wire/sockets'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'

const ack = (sequence: number): Frame => ({ type: 'batchAck', sequence, bytes: 4096 })
const request: Frame = {
  type: 'pageRequest',
  asId: 1,
  round: 1,
  requestId: 1,
  page: 16,
  nrPages: 1,
  ahead: false,
}

/** Beats of the heartbeat until a silent peer counts as lost. */
const heartbeatMs = 5000
const beatsToLoss = 4

t.test('carries frames and their payloads both ways', async (t) => {
  const { source, destination } = await lanePair(t, 'bulk')
  const [there, here] = [new Recorder(), new Recorder()]
  source.open(here)
  destination.open(there)
  const pages = Buffer.alloc(2 * pageBytes, 'pages')
  const batch: Frame = {
    type: 'pageBatch',
    asId: 1,
    round: 3,
    sequence: 7,
    runs: Float64Array.of(16, 1, 20, 1),
    zeroRuns: Float64Array.of(17, 2),
    zstdBytes: 0,
  }
  source.send(batch, pages)
  destination.send(ack(7))
  await eventually('both frames arrive', () => there.frames.length + here.frames.length === 2)
  t.same(there.frames, [batch])
  t.ok(pages.equals(there.payloads[0]))
  t.same(here.frames, [ack(7)])
  t.equal(source.bytesSent, destination.bytesReceived)
  t.ok(source.bytesSent > pages.length)
  t.equal(source.bytesReceived, destination.bytesSent)

  destination.close()
  await Promise.all([source.closed(), destination.closed()])
  t.match(here.losses, [{ code: 'PEER_UNREACHABLE', message: /^bulk lane 0: closed: code 1000/ }])
  t.equal(there.losses.length, 1)
  t.notOk(source.isOpen)
  t.ok(source.isDone, 'and it was on purpose')
})

t.test('what came before the lane is opened may be overwritten where it lay', async (t) => {
  const { url } = await webSocketServer(t, () => {})
  const socket = new WebSocket(url)
  t.teardown(() => socket.terminate())
  await once(socket, 'open')
  const lane = new Lane(socket, 'bulk', 0, 'to-source')
  const message = Buffer.from(encodeFrame(ack(5)))
  socket.emit('message', message, true)
  message.fill(0)
  const got = new Recorder()
  lane.open(got)
  await eventually('it is there', () => got.frames.length + got.losses.length === 1)
  t.same(got.frames, [ack(5)])
})

t.test('frames that come before the lane is opened are kept, in their order', async (t) => {
  const { lane, peer } = await laneAndPeer(t, 'bulk')
  // Some in one piece with the message that the lane was made for: ws hands them out although it is paused.
  sendTogether(
    peer,
    [1, 2, 3].map((sequence) => encodeFrame(ack(sequence))),
  )
  await sleep(20)
  lane.resume()
  await sleep(20)
  lane.pause()
  sendTogether(
    peer,
    [4, 5].map((sequence) => encodeFrame(ack(sequence))),
  )
  const recorder = new Recorder()
  lane.open(recorder)
  t.same(recorder.frames, [], 'the caller has its turn first')
  await eventually('all frames arrive', () => recorder.frames.length === 5)
  t.same(
    recorder.frames,
    [1, 2, 3, 4, 5].map((sequence) => ack(sequence)),
  )
})

t.test('a lane that was lost before it is opened says so then', async (t) => {
  const { lane, peer } = await laneAndPeer(t, 'bulk')
  lane.resume()
  peer.terminate()
  await lane.closed()
  const recorder = new Recorder()
  lane.open(recorder)
  t.match(recorder.losses, [{ code: 'PEER_UNREACHABLE' }])
})

const unknownBody = Buffer.of(3, 0, 0, 0, 0xfa, 0x07, 0x00)
const batchHeader = encodeHeader({
  type: 'pageBatch',
  asId: 1,
  round: 1,
  sequence: 1,
  runs: Float64Array.of(16, 1),
  zeroRuns: new Float64Array(0),
  zstdBytes: 0,
})
/** The tag of the body, and no field in it. */
const emptyAck = Buffer.from([3, 0, 0, 0, ...encodeHeader(ack(1)).subarray(4, 6), 0])

const faults: { what: string; message: Uint8Array | string; code: number; reason: RegExp }[] = [
  { what: 'a text message', message: encodeFrame(ack(1)).toString(), code: 4100, reason: /text message/ },
  { what: 'an empty message', message: Buffer.alloc(0), code: 4100, reason: /0 bytes/ },
  {
    what: 'a header beyond the message',
    message: Buffer.of(99, 0, 0, 0, 1),
    code: 4100,
    reason: /header of 99/,
  },
  {
    what: 'a header that is no protobuf',
    message: Buffer.of(2, 0, 0, 0, 0x0a, 0x7f),
    code: 4100,
    reason: /parsed/,
  },
  {
    what: 'a message that only another lane may carry',
    message: Buffer.alloc(laneLimits('bulk', 'to-source').messageBytes + 1),
    code: 4101,
    reason: /at most/,
  },
  { what: 'a frame of a later version', message: unknownBody, code: 4102, reason: /no body/ },
  { what: 'a frame of another lane', message: encodeFrame(request), code: 4103, reason: /pageRequest/ },
  {
    what: 'a frame of the other direction',
    message: Buffer.concat([batchHeader, Buffer.alloc(pageBytes)]),
    code: 4103,
    reason: /pageBatch is not allowed to-source/,
  },
  {
    what: 'a payload that does not belong there',
    message: Buffer.concat([encodeHeader(ack(1)), Buffer.of(0)]),
    code: 4104,
    reason: /1 bytes of payload instead of 0/,
  },
  { what: 'a frame without its fields', message: emptyAck, code: 4106, reason: /batchAck.sequence/ },
]

for (const { what, message, code, reason } of faults) {
  t.test(`${what} closes the lane and reaches no handler`, async (t) => {
    const { lane, peer } = await laneAndPeer(t, 'bulk')
    const recorder = new Recorder()
    lane.open(recorder)
    const closed = closing(peer)
    // The good frame behind the bad one was read with it, and must not count either.
    sendTogether(peer, [message, encodeFrame(ack(2))])
    t.match(await closed, { code, reason })
    t.same(recorder.frames, [])
    t.match(recorder.losses, [{ code: 'PROTOCOL', details: { closeCode: code } }])
    t.notOk(lane.isOpen)
  })
}

t.test('a message beyond every limit is not even received', async (t) => {
  const { lane, peer } = await laneAndPeer(t, 'bulk')
  const recorder = new Recorder()
  lane.open(recorder)
  const closed = closing(peer)
  peer.send(Buffer.alloc(laneLimits('control', 'to-source').messageBytes + 1))
  t.match(await closed, { code: 1009 })
  t.same(recorder.frames, [])
  t.match(recorder.losses, [{ code: 'PEER_UNREACHABLE', message: /bulk lane 0: Max payload size exceeded/ }])
})

t.test('what a handler throws closes the lane with its code', async (t) => {
  const cases: [error: Error, code: number, lost: string][] = [
    [new WireError('OUTSIDE_PROCESS', 'page 0x10'), 4108, 'PROTOCOL'],
    [new PageferryError('WORKLOAD_EXITED', 'gone'), 4012, 'WORKLOAD_EXITED'],
    [new Error('a defect'), 4018, 'INTERNAL'],
  ]
  for (const [error, code, lost] of cases) {
    const { lane, peer } = await laneAndPeer(t, 'bulk')
    const recorder = new Recorder()
    let calls = 0
    lane.open({
      onFrame() {
        calls++
        throw error
      },
      onLost: (loss) => recorder.onLost(loss),
    })
    const closed = closing(peer)
    sendTogether(peer, [encodeFrame(ack(1)), encodeFrame(ack(2))])
    t.same(await closed, { code, reason: error.message })
    t.equal(calls, 1, 'nothing behind it is handled')
    t.match(recorder.losses, [{ code: lost }])
  }
})

t.test('closing with an error tells the peer why, in what a close frame holds', async (t) => {
  const { source, destination } = await lanePair(t, 'control')
  const recorder = new Recorder()
  destination.open(recorder)
  source.open(new Recorder())
  source.close(new WireError('OUT_OF_ORDER', 'é'.repeat(200)))
  await destination.closed()
  const reason = 'é'.repeat(61)
  t.match(recorder.losses, [{ message: `control lane: closed: OUT_OF_ORDER (${reason})` }])
  t.notOk(destination.isDone)
})

t.test('a lane that is cut off is lost at once, and loses only once', async (t) => {
  const { source, destination } = await lanePair(t, 'fault')
  const recorder = new Recorder()
  source.open(recorder)
  destination.open(new Recorder())
  source.terminate()
  t.match(recorder.losses, [{ code: 'PEER_UNREACHABLE', message: 'fault lane: cut off' }])
  t.notOk(source.isOpen)
  await source.closed()
  t.equal(recorder.losses.length, 1)
  t.notOk(source.isDone)
  const sent = source.bytesSent
  await new Promise<void>((resolve) => source.sendBytes(Buffer.alloc(10), resolve))
  t.equal(source.bytesSent, sent, 'what is sent now is dropped, and its buffer given back')
})

t.test('a peer that does not answer a close frame is cut off', async (t) => {
  const { lane, peer } = await laneAndPeer(t, 'bulk')
  const recorder = new Recorder()
  lane.open(recorder)
  peer.pause()
  const began = Date.now()
  lane.close(new WireError('MALFORMED', 'no'))
  await lane.closed()
  const took = Date.now() - began
  t.ok(took > 1500 && took < 5000, `after ${took} ms`)
  t.equal(recorder.losses.length, 1)
})

t.test('heartbeat', async (t) => {
  // Only the intervals: a beat is then one tick, and everything else is as it is.
  mock.timers.enable({ apis: ['setInterval'] })
  t.teardown(() => mock.timers.reset())
  /** One beat, and the time that an answer needs. */
  const beat = async (): Promise<void> => {
    mock.timers.tick(heartbeatMs)
    await sleep(10)
  }

  const silences: [what: string, autoPong: boolean, silence: (peer: WebSocket) => void][] = [
    ['does not answer', false, () => {}],
    ['stops reading', true, (peer) => peer.pause()],
  ]
  for (const [what, autoPong, silence] of silences) {
    await t.test(`a peer that ${what} is lost`, async (t) => {
      const { lane, peer } = await laneAndPeer(t, 'bulk', { autoPong })
      const recorder = new Recorder()
      lane.open(recorder)
      silence(peer)
      for (let i = 1; i < beatsToLoss; i++) await beat()
      t.ok(lane.isOpen, 'a late answer is no loss')
      await beat()
      await eventually('the lane is lost', () => recorder.losses.length > 0)
      t.match(recorder.losses, [{ code: 'PEER_UNREACHABLE' }])
      t.notOk(lane.isOpen)
    })
  }

  await t.test('a peer that answers is kept', async (t: Test) => {
    const { lane, peer } = await laneAndPeer(t, 'bulk')
    const recorder = new Recorder()
    lane.open(recorder)
    let pings = 0
    peer.on('ping', () => pings++)
    for (let i = 0; i < 3 * beatsToLoss; i++) await beat()
    t.equal(pings, 3 * beatsToLoss)
    t.ok(lane.isOpen)
  })

  await t.test('so is one that sends frames instead', async (t: Test) => {
    const { lane, peer } = await laneAndPeer(t, 'bulk', { autoPong: false })
    const recorder = new Recorder()
    lane.open(recorder)
    for (let i = 1; i <= 3 * beatsToLoss; i++) {
      peer.send(encodeFrame(ack(i)))
      await beat()
    }
    t.ok(lane.isOpen)
    t.equal(recorder.frames.length, 3 * beatsToLoss)
  })
})
