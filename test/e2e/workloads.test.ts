// test-timeout-s: 900
// Every kind of state, in every mode, as root and as another user: a program that checks itself is moved and goes on.
// PAGEFERRY_SOAK=1 for all combinations.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { baseSeed } from '@pageferry/testing/seeds'
import { combinations, users } from '../support/combinations.js'
import { inLab } from '../support/in-lab.js'
import { moveOnce, Workload } from '../support/workload.js'

const programs = [
  'memory',
  'threads',
  'signals',
  'sleepers',
  'files',
  'eventfd',
  'identity',
  'onfault',
  'arguments.py',
  'lazy-storm',
]

await inLab('self-checking programs', async (t, lab) => {
  for (const { name, mode, user, uid } of combinations(programs)) {
    await t.test(`${name}, ${mode}, as ${user}, seed ${baseSeed}`, async (t) => {
      const { verify } = await moveOnce(lab, name, { uid, migration: { mode } })
      t.equal(verify?.mismatches, 0, `${verify?.pages} pages compared`)
    })
  }

  // Numbers side by side beyond what one message carries, and one at the limit: no number in between may be assumed free.
  for (const nr of ['62', '66', '300', '900']) {
    await t.test(`${nr} descriptors, and the highest that the limit allows`, async (t) => {
      const { verify } = await moveOnce(lab, 'descriptors', { args: [nr] })
      t.equal(verify?.mismatches, 0, `${verify?.pages} pages compared`)
    })
  }

  for (const name of ['memory', 'signals', 'identity', 'sleepers']) {
    await t.test(`${name}, there and back`, async (t) => {
      const workload = await Workload.start(lab, name, { uid: 1000, seed: baseSeed + 1 })
      for (const mode of ['hybrid', 'postcopy'] as const) {
        await workload.steps(5)
        await workload.migrate({ mode })
      }
      await workload.steps(5)
      await workload.finish()
      t.equal(workload.host, 'a')
    })
  }

  for (const { name: user, uid } of users) {
    await t.test(`forks in the lazy phase, as ${user}`, async (t) => {
      const workload = await Workload.start(lab, 'lazy-storm', { uid })
      await workload.steps(3)
      await workload.migrate({ mode: 'postcopy' })
      await workload.steps(100)
      const log = join(workload.directory, 'log')
      workload.stop()
      await workload.ended(0)
      t.match(readFileSync(log, 'utf8'), /^6 children\ndone$/m, 'every child saw what its parent saw')
      workload.remove()
    })
  }
})
