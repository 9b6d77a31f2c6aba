// How pages travel: compressed or not, in windows of a chosen size, and never more than the user allows.

import { withRelay } from '@pageferry/bench'
import type { MigrationReport } from '@pageferry/migration'
import type { MigrationOptions } from '@pageferry/service/client'
import { inOneWayLab } from '../support/in-lab.js'
import { Workload } from '../support/workload.js'

const MiB = 2 ** 20
const pageBytes = 4096

/** Every mode with compression, and what it can meet: several lanes, no prefetch, no push, the smallest and the largest window. */
const variants: MigrationOptions[] = [
  { mode: 'hybrid', compression: 'zstd' },
  { mode: 'hybrid', compression: 'off', bulkLanes: 2, bulkWindowMiB: 16 },
  { mode: 'precopy', compression: 'zstd', bulkLanes: 3, bulkWindowMiB: 1 },
  { mode: 'postcopy', compression: 'zstd', bulkLanes: 2, prefetch: false },
  { mode: 'postcopy', compression: 'zstd', bulkWindowMiB: 1 },
  { mode: 'postcopy', compression: 'zstd', pushDelayMs: 500 },
  { mode: 'postcopy', compression: 'auto', bulkLanes: 2 },
]

await inOneWayLab('how pages travel', async (t, lab) => {
  const idle = async (sizeMiB: number, migration: MigrationOptions): Promise<MigrationReport> => {
    const workload = await Workload.start(lab, 'idle', { args: [String(sizeMiB)] })
    await workload.steps(5)
    const { report } = await workload.migrate(migration)
    await workload.steps(5)
    await workload.finish()
    return report
  }

  for (const variant of variants) {
    const name = Object.entries(variant).map(([key, value]) => `${key} ${value}`)
    await t.test(name.join(', '), async (t) => {
      const { compressed, bytesOnWire } = await idle(32, variant)
      if (variant.compression === 'zstd') {
        t.ok(compressed.pages > 1000, `${compressed.pages} pages travelled compressed`)
        t.ok(bytesOnWire < 24 * MiB, `${bytesOnWire} bytes on the wire`)
      }
      if (variant.compression === 'off') t.same(compressed, { pages: 0, bytes: 0 })
    })
  }

  await t.test('a slow link turns it on', async (t) => {
    const link = { rttMs: 10, jitterMs: 0, rateMbit: 100 }
    for (const mode of ['precopy', 'postcopy'] as const) {
      const { compressed } = await withRelay(lab.a, link, (via) => idle(48, { mode, via }))
      t.ok(compressed.pages > 1000, `${mode}: ${compressed.pages} pages travelled compressed`)
    }
  })

  await t.test('rounds stay below the limit of the bandwidth, compressed or not', async (t) => {
    const maxBandwidthMbit = 80
    for (const compression of ['off', 'zstd'] as const) {
      const { rounds } = await idle(32, { mode: 'precopy', maxBandwidthMbit, compression })
      const allowed = (durationMs: number): number => (durationMs * maxBandwidthMbit * 1000) / 8
      for (const { round, bytes, durationMs } of rounds) {
        // The bucket, and the batch that it may be exceeded by.
        t.ok(bytes <= 1.1 * allowed(durationMs) + 2 * MiB, `round ${round}: ${bytes} in ${durationMs} ms`)
      }
      const all = rounds.reduce((sum, { bytes }) => sum + bytes, 0)
      if (compression === 'zstd') t.ok(all < 24 * MiB, 'what counts is what is on the wire')
      else t.ok(all > 31 * MiB)
    }
  })

  await t.test('so does push, and what the workload waits for does not', async (t) => {
    const maxBandwidthMbit = 8
    const options = { mode: 'postcopy', maxBandwidthMbit, compression: 'off' } as const
    const { pushedPages, drainMs, pages, faults } = await idle(24, options)
    const allowed = (drainMs * maxBandwidthMbit * 1000) / 8
    const pushed = pushedPages * pageBytes
    t.ok(pushed <= 1.1 * allowed + 2 * MiB, `${pushed} bytes were pushed in ${drainMs} ms`)
    t.ok(faults.count > 0)
    const all = pages.lazy * pageBytes
    t.ok(all > 1.5 * allowed, `all of ${all} bytes came, where ${allowed} may be pushed: faults do not wait`)
  })
})
