// test-timeout-s: 5400
import { setTimeout as sleep } from 'node:timers/promises'
import { seededRandom } from '@pageferry/base'
import type { Lab } from '@pageferry/lab'
import type { ServiceClient } from '@pageferry/service/client'
import { eventually } from '@pageferry/testing/eventually'
import { kill9 } from '@pageferry/testing/processes'
import { baseSeed, soak } from '@pageferry/testing/seeds'
import t, { type Test } from 'tap'
import { Driver, ended, statusOf } from '../support/driver.js'
import { withOneWayLab } from '../support/in-lab.js'
import { nothingLeft } from '../support/nothing-left.js'
import { Restless } from '../support/restless.js'

/*
 * The dump worker is killed at any moment before the commit: the workload goes on as if nothing had happened, with
 * the memory map, descriptors, masks and cgroup that it had. The moments are spread over the whole time that a
 * migration takes up to its commit, every second one over the freeze, where all of the injection happens.
 */

const nrKills = Number(process.env.PAGEFERRY_KILLS ?? (soak ? 300 : 16))
/** About as long as a migration of this workload takes up to its freeze, and from there to its commit. */
const wholeMs = 2500
const freezeMs = 60
/**
 * A destination that had not said Ready yet gives up and never dials again; a successor that finds a complete dump cannot
 * know that, and waits for it (lingerMs of dump-service/src/source-lanes.ts, 30 s).
 */
const goneMs = 45_000

t.test(
  `kill -9 of the dump worker at ${nrKills} moments before the commit`,
  { timeout: 5_400_000 },
  // A worker that has rehearsed reaches each moment sooner. The seed decides, so both kinds are killed.
  (t) => withOneWayLab((lab) => killAtMoments(t, lab), baseSeed % 2),
)

async function killAtMoments(t: Test, lab: Lab): Promise<void> {
  const driver = new Driver(lab)
  const random = seededRandom(baseSeed)
  let workload = await Restless.start(lab, { mib: 24, kind: 'calm' })
  let clean = workload.traces()
  /** What the killed worker left in the workload, for its successor to remove. */
  const remains = { code: 0, areas: 0, freezers: 0 }
  let committed = 0
  for (let i = 0; i < nrKills; i++) {
    const inFreeze = i % 2 === 1
    const delayMs = random() * (inFreeze ? freezeMs : wholeMs)
    const what = `seed ${baseSeed}, kill ${i} ${inFreeze ? `${delayMs.toFixed(1)} ms into the freeze` : `after ${delayMs.toFixed(0)} ms`}`
    try {
      const { id, source, destination } = await driver.start(workload.pid)
      const worker = driver.worker('a', 'source', id)
      if (inFreeze) await untilFreezing(source, id)
      const until = performance.now() + delayMs
      if (delayMs > 20) await sleep(delayMs - 20)
      while (performance.now() < until) await sleep(0)
      kill9(worker)
      const left = lab.a.outerPid(workload.pid) === null ? clean : workload.traces()
      const last = await ended(source, id)
      if (last.state === 'finished') {
        // It was handed over before the kill.
        committed++
        await ended(destination, id)
        workload.conclude()
        await workload.endedWell()
        workload.remove()
        workload = await Restless.start(lab, { mib: 24, kind: 'calm' })
        clean = workload.traces()
        continue
      }
      if (left.vdsoEnd !== clean.vdsoEnd) remains.code++
      if (left.maps !== clean.maps) remains.areas++
      if (left.cgroup !== clean.cgroup) remains.freezers++
      await ended(destination, id)
      await workload.runs()
      t.match(last.workload, { comm: 'restless', where: 'running' }, what)
      const outer = lab.a.outerPid(workload.pid)
      t.same(workload.traces(), clean, what)
      await nothingLeft(lab, outer === null ? [] : [outer], goneMs)
    } catch (error) {
      t.fail(`${what}: ${(error as Error).message}`)
      break
    }
    if (!t.passing()) break
  }
  t.comment(
    `seed ${baseSeed}: ${committed} kills came too late; left behind at first: ${JSON.stringify(remains)}`,
  )
  t.ok(committed < nrKills / 2, 'most kills hit before the commit')
  workload.conclude()
  await workload.endedWell()
  await nothingLeft(lab)
  workload.remove()
}

async function untilFreezing(source: ServiceClient, id: string): Promise<void> {
  await eventually(
    'the freeze',
    async () => {
      const status = await statusOf(source, id)
      return status !== undefined && !['starting', 'preparing', 'precopy'].includes(status.state)
    },
    // On two processors with a load of 16 a whole migration took as long.
    { timeoutMs: 90_000, everyMs: 10 },
  )
}
