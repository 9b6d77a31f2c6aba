// test-timeout-s: 1800
import { FAULTS, type FaultName } from '@pageferry/migration'
import { isFinal } from '@pageferry/service/client'
import { baseSeed, soak } from '@pageferry/testing/seeds'
import t from 'tap'
import { Driver, ended } from '../support/driver.js'
import { explained, withOneWayLab } from '../support/in-lab.js'
import { nothingLeft } from '../support/nothing-left.js'
import { endsWellOn, hasNoGap, Restless } from '../support/restless.js'

/*
 * Every fault that is shipped (migration/faults.ts), struck once: afterwards exactly one machine runs the workload,
 * both sides agree on which, it finds its memory right, and nothing else is left.
 */

const rounds = Number(process.env.PAGEFERRY_ROUNDS ?? (soak ? 10 : 1))
const names = (Object.keys(FAULTS) as FaultName[]).filter((name) =>
  name.includes(process.env.PAGEFERRY_FAULT ?? ''),
)

t.test('injected faults', { timeout: 1_800_000 }, (t) =>
  withOneWayLab((lab) =>
    explained(t, lab, async () => {
      const driver = new Driver(lab)
      let workload: Restless | null = null
      let clean = {}
      for (const [n, name] of [...Array(rounds)].flatMap(() => names).entries()) {
        const seed = baseSeed + n
        const what = `${name}:${seed}`
        if (workload === null) {
          workload = await Restless.start(lab, { mib: 24, kind: 'calm' })
          clean = workload.traces()
        }
        const started = await driver.start(workload.pid, { fault: what }).catch((error: Error) => error)
        if (started instanceof Error) {
          // Struck before it was listening: the request itself fails, and nothing has begun.
          t.match(started.message, /ended before the commit|injected/, what)
          await workload.runs()
          t.same(workload.traces(), clean, `${what}: untouched`)
          await nothingLeft(lab, [lab.a.outerPid(workload.pid) ?? 0], 45_000)
          continue
        }
        const { id, source, destination } = started
        const here = await ended(source, id)
        const there = await ended(destination, id)
        t.ok(isFinal(here) && isFinal(there))
        t.equal(here.state === 'finished', there.state === 'finished', `${what}: both sides say the same`)
        if (here.state === 'finished') {
          await endsWellOn(lab, workload, id)
          t.ok(hasNoGap(workload), `${what}: it moved, and its log has no gap`)
          await nothingLeft(lab, [], 45_000)
          workload.remove()
          workload = null
        } else {
          await workload.runs()
          t.same(workload.traces(), clean, `${what}: it stayed as it was: ${here.error?.message}`)
          await nothingLeft(lab, [lab.a.outerPid(workload.pid) ?? 0], 45_000)
        }
        if (!t.passing()) return
      }
      workload?.conclude()
      await workload?.endedWell()
      workload?.remove()
    }),
  ),
)
