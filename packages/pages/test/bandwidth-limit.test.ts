import fc from 'fast-check'
import t from 'tap'
import { BandwidthLimit } from '../src/bandwidth-limit.js'
import { fcOptions } from './fc.js'

const bucket = 256 * 1024

t.test('the first batch goes at once, the next one when it is paid for', async (t) => {
  // A byte a millisecond.
  const limit = new BandwidthLimit(0.008, 500)
  t.equal(limit.waitMs(1000), 0)
  limit.sent(2000, 1000)
  t.equal(limit.waitMs(1000), 1500, 'the bucket pays for 500 bytes')
  t.equal(limit.waitMs(1600), 900)
  t.equal(limit.waitMs(2500), 0)
  limit.sent(1000, 2600)
  t.equal(limit.waitMs(2600), 900, 'what was not used meanwhile is saved')
  limit.sent(1000, 9000)
  t.equal(limit.waitMs(9000), 500, 'but no more than a bucket of it')
})

t.test('the rate is held whatever the batches, and reached although timers are late', async () => {
  const batch = fc.record({
    bytes: fc.integer({ min: 1, max: 1_048_576 }),
    late: fc.double({ min: 0, max: 3, noNaN: true }),
  })
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 500 }),
      fc.array(batch, { minLength: 1, maxLength: 300, size: 'max' }),
      (megabits, batches) => {
        const limit = new BandwidthLimit(megabits, bucket)
        const perMs = megabits * 125
        const sent: { at: number; bytes: number }[] = []
        let now = 500
        let total = 0
        for (const { bytes, late } of batches) {
          const wait = limit.waitMs(now)
          // What is late by less than a bucket is made up for.
          if (wait > 0) now += wait + Math.min(late, bucket / perMs)
          limit.sent(bytes, now)
          sent.push({ at: now, bytes })
          total += bytes
        }
        for (let from = 0; from < sent.length; from += 17) {
          let bytes = 0
          for (const each of sent.slice(from)) {
            const allowed = perMs * (each.at - sent[from].at) + bucket + 1
            if (bytes > allowed) throw new Error(`${bytes} bytes before a batch, ${allowed} allowed`)
            bytes += each.bytes
          }
        }
        const last = sent.at(-1) as (typeof sent)[0]
        const slowest = (total - last.bytes) / perMs + bucket / perMs + 1
        if (now - 500 > slowest) throw new Error(`${now - 500} ms instead of ${slowest}`)
      },
    ),
    fcOptions(300),
  )
})
