// A workload that job control has stopped (SIGSTOP) is moved, and stays stopped until SIGCONT.

import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventually } from '@pageferry/testing/eventually'
import { combinations } from '../support/combinations.js'
import { inLabWithSpares } from '../support/in-lab.js'
import { Workload } from '../support/workload.js'

/** Long enough for a thread that runs to take many steps. */
const watchedMs = 300

await inLabWithSpares(true, 'job control', async (t, lab) => {
  const outerPid = (workload: Workload) => lab.host(workload.host).outerPid(workload.pid) as number
  const signal = (workload: Workload, name: NodeJS.Signals) => process.kill(outerPid(workload), name)
  const states = (workload: Workload) => {
    const tasks = `/proc/${outerPid(workload)}/task`
    return readdirSync(tasks).map((tid) => /\) (.) /.exec(readFileSync(`${tasks}/${tid}/stat`, 'utf8'))?.[1])
  }
  const isStopped = (workload: Workload) => states(workload).every((state) => state === 'T')

  for (const { name, mode, user, uid } of combinations(['threads', 'memory'])) {
    await t.test(`stopped before the move: ${name}, ${mode}, as ${user}`, async (t) => {
      const workload = await Workload.start(lab, name, { uid })
      await workload.steps(3)
      signal(workload, 'SIGSTOP')
      await eventually('it is stopped', () => isStopped(workload))
      const before = workload.lines.length
      await workload.migrate({ mode })
      await sleep(watchedMs)
      t.ok(isStopped(workload), `${states(workload)}`)
      t.equal(workload.lines.length, before, 'not one step further')
      signal(workload, 'SIGCONT')
      await workload.steps(3)
      await workload.finish()
    })
  }

  await t.test('stopped in a round', async (t) => {
    const workload = await Workload.start(lab, 'threads')
    await workload.steps(3)
    let stopped = false
    await workload.migrate({ mode: 'hybrid' }, ({ progress }) => {
      if (progress?.phase !== 'round' || stopped) return
      stopped = true
      signal(workload, 'SIGSTOP')
    })
    t.ok(stopped)
    await sleep(watchedMs)
    t.ok(isStopped(workload), `${states(workload)}`)
    signal(workload, 'SIGCONT')
    await workload.steps(3)
    await workload.finish()
  })

  for (const injectFault of ['source-error-capture', 'destination-error-restore'] as const) {
    await t.test(`a migration that fails leaves it stopped: ${injectFault}`, async (t) => {
      const workload = await Workload.start(lab, 'threads')
      await workload.steps(3)
      signal(workload, 'SIGSTOP')
      await eventually('it is stopped', () => isStopped(workload))
      const before = workload.lines.length
      const { migrated } = await workload.tryMigrate({ injectFault })
      t.notOk(migrated)
      await sleep(watchedMs)
      t.ok(isStopped(workload), `${states(workload)}`)
      t.equal(workload.lines.length, before)
      signal(workload, 'SIGCONT')
      await workload.steps(3)
      await workload.finish()
    })
  }
})
