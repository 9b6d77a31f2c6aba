// test-timeout-s: 300
// Whatever the threads of a program do to its memory map, and however fast: who waits for a page gets it.

import { inLab, Workload } from './harness.js'

/** The kernel lets nobody install a page while a change is under way: with more threads there is hardly a moment. */
const nrThreads = (process.env.PAGEFERRY_MOVERS ?? '1 2 8').split(' ').map(Number)

await inLab('a storm of moves in the lazy phase', async (t, lab) => {
  for (const nr of nrThreads) {
    await t.test(`${nr} threads`, async (t) => {
      const workload = await Workload.start(lab, 'movers', { args: [String(nr)] })
      await workload.steps(3)
      const began = Date.now()
      const { report } = await workload.migrate({ mode: 'postcopy', verify: true })
      t.comment(`${Date.now() - began} ms, ${report.faults.count} faults, p50 ${report.faults.p50Us} us`)
      t.comment(workload.lines.find((line) => line.startsWith('all was read')) ?? 'not all was read')
      t.equal(report.verify?.mismatches, 0)
      await workload.finish()
    })
  }
})
