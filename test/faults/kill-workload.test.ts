// test-timeout-s: 300
import { kill9 } from '@pageferry/testing/processes'
import t from 'tap'
import { Driver, ended, reached } from '../support/driver.js'
import { explained, slowLink, withOneWayLab } from '../support/in-lab.js'
import { nothingLeft } from '../support/nothing-left.js'
import { Restless } from '../support/restless.js'

/*
 * The workload is killed in the lazy phase while its restore worker is dead, so that only the keeper sees how. That it
 * ran stands in the journal: it has moved, and has ended. Without that it might have been killed while it was frozen.
 */
t.test('the workload is killed together with its restore worker', { timeout: 300_000 }, (t) =>
  withOneWayLab((lab) =>
    explained(t, lab, async () => {
      await slowLink(lab, 200)
      const driver = new Driver(lab)
      const workload = await Restless.start(lab, { mib: 48, kind: 'calm' })
      const { id, source, destination } = await driver.start(workload.pid, { mode: 'postcopy' })
      await reached(destination, id, ['running'])
      await workload.runs()
      t.ok(kill9(driver.worker('b', 'destination', id)))
      t.ok(kill9(lab.b.outerPid(workload.pid) ?? undefined))
      const there = await ended(destination, id)
      t.equal(there.state, 'finished', JSON.stringify(there.error))
      t.match(there.workload, { where: 'gone', exit: { kind: 'signaled', value: 9 } })
      t.equal((await ended(source, id)).state, 'finished')
      await nothingLeft(lab, [], 40_000)
      workload.remove()
    }),
  ),
)
