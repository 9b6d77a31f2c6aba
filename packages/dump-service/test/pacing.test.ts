import t from 'tap'
import { Pacing } from '../src/rounds/pacing.js'

const MiB = 2 ** 20

t.test('without a limit nothing waits', async (t) => {
  const pacing = new Pacing(0)
  pacing.sent(2 ** 40)
  await pacing.turn(new AbortController().signal)
  t.pass()
})

t.test('with one, a turn comes when the batches before are paid for', async (t) => {
  // A batch takes 10 ms.
  const pacing = new Pacing((MiB * 8) / 1e6 / 0.01)
  const { signal } = new AbortController()
  const began = performance.now()
  for (let batch = 0; batch < 10; batch++) {
    await pacing.turn(signal)
    pacing.sent(MiB)
  }
  await pacing.turn(signal)
  const ms = performance.now() - began
  t.ok(ms >= 89, `ten batches after ${ms} ms: one comes out of the bucket`)
})

t.test('an abort ends the wait', async (t) => {
  const pacing = new Pacing(1)
  pacing.sent(2 ** 40)
  const controller = new AbortController()
  const waiting = pacing.turn(controller.signal)
  controller.abort()
  await waiting
  await pacing.turn(controller.signal)
  t.pass()
})

t.test(
  'pushed batches are small where little is allowed: the destination must not believe that they are lost',
  async (t) => {
    t.equal(new Pacing(1).batchPages, 3)
    t.equal(new Pacing(8).batchPages, 24)
    t.equal(new Pacing(1000).batchPages, 256)
    t.equal(new Pacing(0).batchPages, 256)
  },
)
