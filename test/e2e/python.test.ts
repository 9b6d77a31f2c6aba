// test-timeout-s: 900
// Python programs continue correctly: one computing, one allocating and freeing, one with threads.
// PAGEFERRY_SOAK=1 for all combinations, 20 times in a row and 20 hops.

import { seededRandom } from '@pageferry/base'
import { baseSeed, soak } from '@pageferry/testing/seeds'
import { combinations, type Mode, modes, users } from '../support/combinations.js'
import { inLab } from '../support/in-lab.js'
import { moveOnce, Workload } from '../support/workload.js'

const programs = ['compute.py', 'alloc.py', 'threads.py']
const timesInARow = soak ? 20 : 5
const hops = soak ? 20 : 6

await inLab('Python programs', async (t, lab) => {
  for (const { name, mode, user, uid } of combinations(programs)) {
    await t.test(`${name}, ${mode}, as ${user}`, async (t) => {
      const { verify } = await moveOnce(lab, name, { uid, migration: { mode } })
      t.equal(verify?.mismatches, 0, `${verify?.pages} pages compared`)
    })
  }

  for (const name of programs) {
    await t.test(`${name}: ${timesInARow} times in a row`, async (t) => {
      const random = seededRandom(baseSeed)
      for (let time = 0; time < timesInARow; time++) {
        const mode = modes[Math.floor(random() * modes.length)] as Mode
        const seed = baseSeed + time
        const { name: user, uid } = users[time % users.length] as (typeof users)[number]
        const stepsBefore = 1 + Math.floor(random() * 8)
        await moveOnce(lab, name, { seed, uid, migration: { mode }, stepsBefore })
        t.pass(`${mode}, as ${user}, seed ${seed}`)
      }
    })
  }

  for (const { name: user, uid } of users) {
    await t.test(`a ping-pong of ${hops} hops, as ${user}`, async (t) => {
      const workload = await Workload.start(lab, 'alloc.py', { uid })
      for (let hop = 0; hop < hops; hop++) {
        const { report } = await workload.migrate({ mode: modes[hop % modes.length] })
        t.equal(workload.host, hop % 2 === 0 ? 'b' : 'a', `hop ${hop + 1}: blackout ${report.blackoutMs} ms`)
        await workload.steps(2)
      }
      await workload.finish()
    })
  }
})
