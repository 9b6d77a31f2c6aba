// Files that have lost their name while a program uses them: a program that checks itself, and real ones whose files an
// upgrade has replaced. PAGEFERRY_SOAK=1 for all combinations.

import { readdirSync } from 'node:fs'
import { baseSeed, soak } from '@pageferry/testing/seeds'
import { combinations, modes, users } from '../support/combinations.js'
import { inLab } from '../support/in-lab.js'
import { moveOnce, Workload } from '../support/workload.js'

const upgraded = ['deleted.py', 'upgraded.sh']
/** Each program in a mode of its own, as a user of its own. */
const some = upgraded.map((name, nr) => {
  const { name: user, uid } = users[(baseSeed + nr) % users.length]
  return { name, user, uid, mode: modes[(baseSeed + nr) % modes.length] }
})

await inLab('deleted files', async (t, lab) => {
  for (const { name, mode, user, uid } of soak ? combinations(['ghosts', ...upgraded]) : some) {
    await t.test(`${name}, ${mode}, as ${user}, seed ${baseSeed}`, async (t) => {
      const { verify } = await moveOnce(lab, name, { uid, migration: { mode } })
      t.equal(verify?.mismatches, 0, `${verify?.pages} pages compared`)
    })
  }

  await t.test('every kind, there and back; too much is refused, and nothing is left behind', async (t) => {
    const workload = await Workload.start(lab, 'ghosts', { uid: users[(baseSeed + 1) % users.length].uid })
    const names = readdirSync(workload.directory)
    await workload.steps(2)
    await t.rejects(workload.tryMigrate({ ghostLimitMiB: 1 }), {
      code: 'REFUSED',
      message: /deleted file .* the limit is 1048576: --ghost-limit/,
    })
    const failed = await workload.tryMigrate({ injectFault: 'destination-error-restore' })
    t.notOk(failed.migrated)
    t.same(readdirSync(workload.directory), names)
    for (const mode of modes) {
      await workload.steps(5)
      await workload.migrate({ mode })
      t.same(readdirSync(workload.directory), names, mode)
    }
    await workload.steps(5)
    await workload.finish()
    t.equal(workload.host, 'b')
  })
})
