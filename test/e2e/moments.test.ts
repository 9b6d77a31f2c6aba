// test-timeout-s: 3600
// The program with threads, vector registers, mutexes and births, and those with signals and sleeps, frozen at many
// seeded moments: PAGEFERRY_SOAK=1 for 200 in each mode, PAGEFERRY_MOMENTS=n for n in each.

import { setTimeout as sleep } from 'node:timers/promises'
import { seededRandom } from '@pageferry/base'
import { baseSeed, soak } from '@pageferry/testing/seeds'
import { modes } from '../support/combinations.js'
import { inLab } from '../support/in-lab.js'
import { Workload } from '../support/workload.js'

const moments = Number(process.env.PAGEFERRY_MOMENTS ?? (soak ? 200 : 6))
const programs = ['threads', 'signals', 'sleepers']
/** A process that has been moved often is as good as a new one; but not every failure may need a young one. */
const movesPerProcess = soak ? 10 : 2
const maxPauseMs = 40

await inLab('frozen at many moments', async (t, lab) => {
  for (const mode of modes) {
    await t.test(`${moments} moments, ${mode}`, async (t) => {
      const random = seededRandom(baseSeed)
      let workload: Workload | null = null
      for (let moment = 0; moment < moments; moment++) {
        if (workload === null) {
          const name = programs[Math.floor(moment / movesPerProcess) % programs.length] as string
          const uid = random() < 0.5 ? undefined : 1000
          workload = await Workload.start(lab, name, { uid, seed: baseSeed + moment })
        }
        await workload.steps(1)
        await sleep(random() * maxPauseMs)
        const { report } = await workload.migrate({ mode })
        t.pass(`${workload.name}, seed ${workload.seed}: blackout ${report.blackoutMs} ms`)
        if (workload.migrations >= movesPerProcess || moment === moments - 1) {
          await workload.steps(3)
          await workload.finish()
          workload = null
        }
      }
    })
  }
})
