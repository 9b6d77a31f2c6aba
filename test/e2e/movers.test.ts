// test-timeout-s: 300
// Whatever the threads of a program do to its memory map, and however fast: who waits for a page gets it.

import { baseSeed } from '@pageferry/testing/seeds'
import { killsOfWorker } from '../support/driver.js'
import { inOneWayLab } from '../support/in-lab.js'
import { Workload } from '../support/workload.js'

/** The kernel installs no page while a change is under way. With more threads there is hardly a moment without one. */
const cases = [
  { nrThreads: 1, nrKills: 0 },
  { nrThreads: 8, nrKills: 0 },
  // It is likely to leave the process held still.
  { nrThreads: 8, nrKills: 3 },
]
const killsWithinMs = 3000

await inOneWayLab('a storm of moves in the lazy phase', async (t, lab) => {
  for (const { nrThreads, nrKills } of cases) {
    await t.test(`${nrThreads} threads, ${nrKills} kills of the restore worker`, async (t) => {
      const workload = await Workload.start(lab, 'movers', { args: [String(nrThreads)] })
      await workload.steps(3)
      const kills = killsOfWorker(lab, nrKills, killsWithinMs, baseSeed)
      const { report } = await workload.migrate({ mode: 'postcopy' }, kills.onStatus)
      t.comment(`drained after ${report.drainMs} ms, ${report.faults.count} faults, ${kills.nrKilled} kills`)
      if (nrKills > 0) t.ok(kills.nrKilled > 0, 'there was a worker to kill')
      t.equal(report.verify?.mismatches, 0)
      await workload.finish()
    })
  }
})
