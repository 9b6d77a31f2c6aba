import { mock } from 'node:test'
import { createLogger } from '@pageferry/base'
import { eventually } from '@pageferry/testing/eventually'
import { encodeFrame, supportedVersions } from '@pageferry/wire'
import t, { type Test } from 'tap'
import { WebSocket } from 'ws'
import { SourceLanes } from '../src/lanes/lanes.js'

const id = 'c0ffee'
const token = 'the-right-token'
/** How long a lane that broke may take to be dialled again. */
const hangUpMs = 1500

/** The control lane alone, and whether the source takes it for hung up. */
async function connected(test: Test) {
  const events: string[] = []
  const lanes = new SourceLanes({
    spec: { id, host: '127.0.0.1', token },
    settings: { bulkLanes: 1, bulkWindowMiB: 8, compression: 'off', maxBandwidthMbit: 0 },
    log: createLogger('test', 'silent'),
    onFrame: () => {},
    onBatchesLost: () => {},
    onEvent: ({ type }) => events.push(type),
  })
  const { url } = await lanes.listen()
  test.teardown(() => lanes.close())
  const socket = new WebSocket(url)
  test.teardown(() => socket.terminate())
  await new Promise((resolve) => socket.once('open', resolve))
  const hello = { type: 'hello' as const, versions: [...supportedVersions], migrationId: id, token }
  socket.send(encodeFrame({ ...hello, lane: 'control', laneIndex: 0, resume: false, compressions: [] }))
  await eventually('the control lane', () => lanes.isConnected)
  // From here on time is ours.
  mock.timers.enable({ apis: ['setTimeout'] })
  test.teardown(() => mock.timers.reset())
  let isHungUp = false
  void lanes.hungUp().then(() => {
    isHungUp = true
  })
  const lost = () => turnsUntil(() => events.includes('laneLost'))
  const after = async (ms: number) => {
    mock.timers.tick(ms)
    await turnsUntil(() => isHungUp, 10)
    return isHungUp
  }
  return { socket, lost, after }
}

/** Turns of the event loop, for timers stand still. */
async function turnsUntil(condition: () => boolean, atMost = 1_000_000): Promise<void> {
  for (let turn = 0; !condition() && turn < atMost; turn++) {
    await new Promise((resolve) => setImmediate(resolve))
  }
}

t.test('a destination that has closed its control lane on purpose does not come again', async (t) => {
  const { socket, lost, after } = await connected(t)
  socket.close(1000)
  await lost()
  t.ok(await after(1))
})

t.test('one whose lane broke may', async (t) => {
  const { socket, lost, after } = await connected(t)
  socket.terminate()
  await lost()
  t.notOk(await after(hangUpMs - 1))
  t.ok(await after(1))
})
