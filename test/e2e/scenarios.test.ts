// test-timeout-s: 900
// What single migrations must show: the scenario of 2016, a large idle process, an exit in the middle of a round.

import { failureOf } from '@pageferry/service/client'
import { users } from '../support/combinations.js'
import { inLabWithSpares } from '../support/in-lab.js'
import { Workload } from '../support/workload.js'

await inLabWithSpares('a-to-b', 'scenarios', async (t, lab) => {
  await t.test('another program is started in the middle of a round', async (t) => {
    const workload = await Workload.start(lab, 'execs')
    await workload.steps(3)
    let asked = false
    // The round lasts for a second, so it is not over before the program has begun anew.
    const result = await workload.tryMigrate({ mode: 'hybrid', maxBandwidthMbit: 200 }, ({ progress }) => {
      if (progress?.phase !== 'round' || asked) return
      asked = true
      process.kill(lab.a.outerPid(workload.pid) as number, 'SIGUSR1')
    })
    t.notOk(result.migrated)
    t.match(failureOf(result), {
      code: 'WORKLOAD_CHANGED',
      message: /has started another program \(execve\)/,
    })
    t.equal(result.source?.workload?.where, 'running')
    await workload.steps(5)
    t.ok(workload.lines.includes('generation 2'))
    await workload.migrate({ mode: 'hybrid' })
    await workload.steps(5)
    workload.stop()
    await workload.ended(0)
    workload.remove()
  })

  for (const { name: user, uid } of users) {
    await t.test(
      `the mailing list thread of 2016: ten pages without a fault, six with one each, as ${user}`,
      async (t) => {
        const workload = await Workload.start(lab, 'scenario2016', { uid })
        await workload.steps(20)
        // Nothing is pushed before everything has been touched, and nothing comes that was not.
        const demandOnly = { pushDelayMs: 1500, prefetch: false }
        const { report } = await workload.migrate({ mode: 'hybrid', ...demandOnly })
        await workload.steps(20)
        const touched = workload.lines.find((line) => line.startsWith('touched'))
        t.equal(touched, 'touched 0 6', 'as the workload itself sees it')
        t.equal(report.faults.count, 6, 'as userfaultfd tells it')
        t.equal(report.pages.lazy, 6)
        t.ok(report.pages.parent >= 10, `${report.pages.parent} pages are PARENT`)
        await workload.finish()
      },
    )

    await t.test(`1 GiB, mostly idle: at least 95 % is PARENT, as ${user}`, async (t) => {
      const workload = await Workload.start(lab, 'idle', { uid, args: ['1024'] })
      await workload.steps(5)
      const { report } = await workload.migrate({ mode: 'hybrid' })
      const { parent, lazy, present } = report.pages
      t.ok(parent >= 0.95 * 262_144, `${parent} pages are PARENT, ${lazy} lazy, ${present} in the freeze`)
      t.ok(lazy + present < 4096, 'the lazy phase carries only what was written since')
      await workload.steps(5)
      await workload.finish()
    })

    await t.test(
      `what the workload gives back before it was pushed does not cross the network, as ${user}`,
      async (t) => {
        const workload = await Workload.start(lab, 'discards', { uid })
        await workload.steps(3)
        const { report } = await workload.migrate({ mode: 'postcopy', pushDelayMs: 1500 })
        await workload.steps(3)
        t.ok(workload.lines.includes('discarded'))
        t.ok(report.pages.lazy > 16_384, `${report.pages.lazy} pages were lazy`)
        t.ok(
          report.pushedPages > 3000,
          `${report.pushedPages} pages waited to be pushed, and were not asked for`,
        )
        t.ok(report.bytesOnWire < 32 << 20, `${report.bytesOnWire} bytes for the 16 MiB that it has kept`)
        await workload.finish()
      },
    )

    await t.test(`a child is born in the middle of a round, as ${user}`, async (t) => {
      const workload = await Workload.start(lab, 'births', { uid })
      await workload.steps(3)
      const result = await workload.tryMigrate({ mode: 'hybrid' }, (status) => {
        if (status.progress?.phase === 'round') workload.stop()
      })
      t.notOk(result.migrated)
      t.match(failureOf(result), { code: 'WORKLOAD_CHANGED', message: /^child processes \d+: / })
      await workload.ended(0)
      workload.remove()
    })

    await t.test(`children find empty what is to be wiped for them, as ${user}`, async (t) => {
      const workload = await Workload.start(lab, 'wipes', { uid })
      await workload.steps(3)
      const { report } = await workload.migrate({ mode: 'postcopy', pushDelayMs: 1500, prefetch: false })
      t.ok(report.pages.lazy > 0, 'not that nothing was lazy')
      await workload.steps(64)
      await workload.finish()
    })

    await t.test(`locked memory is enlarged while other memory is still to come, as ${user}`, async (t) => {
      const workload = await Workload.start(lab, 'enlarges', { uid })
      await workload.steps(3)
      const { report } = await workload.migrate({ mode: 'postcopy', pushDelayMs: 1500, prefetch: false })
      t.ok(report.pages.lazy > 0, 'not that nothing was lazy')
      await workload.steps(64)
      await workload.finish()
    })

    await t.test(`the process exits in the middle of a round, as ${user}`, async (t) => {
      const workload = await Workload.start(lab, 'exits', { uid })
      await workload.steps(3)
      const moved = workload.tryMigrate({ mode: 'hybrid' }, (status) => {
        if (status.progress?.phase === 'round') workload.stop()
      })
      const result = await moved
      t.notOk(result.migrated)
      t.match(failureOf(result), {
        code: 'WORKLOAD_EXITED',
        message: /exited with status 7 during the migration/,
      })
      await workload.ended(7)
      workload.remove()
    })
  }
})
