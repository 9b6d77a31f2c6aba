import { pageBytes } from '@pageferry/base'
import t from 'tap'
import { FlightWindow } from '../src/flight-window.js'

/** A path with one narrow place: how busy it was, and how long a page would have waited there. */
function simulate(bytesPerMs: number, rttMs: number, durationMs: number) {
  const window = new FlightWindow()
  const acks: { id: number; atMs: number }[] = []
  const waits: number[] = []
  let freeMs = 0
  let busyMs = 0
  let id = 0
  for (let nowMs = 0; nowMs < durationMs; nowMs += 0.25) {
    while (acks.length > 0 && acks[0].atMs <= nowMs)
      window.acknowledged((acks.shift() as { id: number }).id, nowMs)
    while (window.hasRoom) {
      const bytes = window.batchPages * pageBytes
      window.sent(++id, bytes, nowMs)
      const startMs = Math.max(nowMs + rttMs / 2, freeMs)
      freeMs = startMs + bytes / bytesPerMs
      if (nowMs > durationMs / 2) busyMs += bytes / bytesPerMs
      acks.push({ id, atMs: freeMs + rttMs / 2 })
    }
    if (nowMs > durationMs / 2) waits.push(Math.max(0, freeMs - (nowMs + rttMs / 2)))
  }
  waits.sort((a, b) => a - b)
  return { use: busyMs / (durationMs / 2), waitMs: waits[Math.floor(waits.length * 0.99)], window }
}

t.test('the path is busy, and nobody waits long behind what is pushed', async (t) => {
  for (const [name, bytesPerMs, rttMs] of [
    ['100 Mbit/s, 10 ms', 12_500, 10],
    ['100 Mbit/s, 0.2 ms', 12_500, 0.2],
    ['1 Gbit/s, 1 ms', 125_000, 1],
    ['1 Gbit/s, 10 ms', 125_000, 10],
  ] as const) {
    const { use, waitMs } = simulate(bytesPerMs, rttMs, 4000)
    t.ok(use > 0.95, `${name}: in use for ${(100 * use).toFixed(0)} %`)
    // The queue, one batch, and where a batch cannot be that small, two of them.
    const batchMs = (16 * pageBytes) / bytesPerMs
    t.ok(waitMs < 12 + 2 * batchMs, `${name}: ${waitMs.toFixed(1)} ms of waiting`)
  }
})

t.test('a fast path gets whole batches and the whole window', async (t) => {
  const { window } = simulate(2_000_000, 0.1, 200)
  t.equal(window.batchPages, 256)
  t.equal(window.bytes, 4 * 2 ** 20)
})

t.test('nothing measured, nothing known: one small batch alone', async (t) => {
  const window = new FlightWindow()
  t.ok(window.hasRoom)
  window.sent(1, window.batchPages * pageBytes, 0)
  t.notOk(window.hasRoom)
  window.lost()
  t.ok(window.hasRoom, 'what is lost is not on its way')
  window.acknowledged(1, 5)
  window.sent(2, window.batchPages * pageBytes, 6)
  t.notOk(window.hasRoom, 'an answer to it says nothing')
  window.acknowledged(2, 8)
  t.ok(window.hasRoom)
})

t.test('the rate of a path is known after some batches', async (t) => {
  const window = new FlightWindow()
  for (let id = 1; id <= 4; id++) {
    t.equal(window.rate, null)
    window.sent(id, 64 * 1024, id * 10, 32)
    window.acknowledged(id, id * 10 + 4)
  }
  t.same(window.rate, { bytesPerMs: 16 * 1024, pagesPerMs: 8 })
  window.lost()
  t.equal(window.rate, null, 'another connection may go another way')
})

t.test(
  'compressed pages fill the path too: more of them go into a batch, up to four times as many',
  async (t) => {
    for (const [ratio, expected] of [
      [1, 48],
      [0.5, 96],
      [0.01, 192],
    ]) {
      const window = new FlightWindow()
      // 24 pages' worth of bytes per millisecond.
      for (let id = 1; id <= 40; id++) {
        window.sent(id, 24 * 4 * pageBytes, id * 10, (24 * 4) / ratio)
        window.acknowledged(id, id * 10 + 4)
      }
      t.ok(Math.abs(window.batchPages - expected) <= 1, `${ratio}: ${window.batchPages} pages`)
    }
  },
)

t.test('a window that the user has chosen', async (t) => {
  const window = new FlightWindow(2 ** 20)
  for (let id = 1; id <= 40; id++) {
    window.sent(id, 2 ** 20, id)
    window.acknowledged(id, id + 0.5)
  }
  t.equal(window.bytes, 2 ** 20)
  t.ok(window.hasRoom, 'one batch always fits')
})
