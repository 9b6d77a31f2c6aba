// test-timeout-s: 300
import { eventually } from '@pageferry/testing/eventually'
import { baseSeed } from '@pageferry/testing/seeds'
import t from 'tap'
import { Driver, ended, reached } from '../support/driver.js'
import { explained, slowLink, withOneWayLab } from '../support/in-lab.js'
import { nothingLeft } from '../support/nothing-left.js'
import { endsWellOn, hasNoGap, Restless } from '../support/restless.js'

/*
 * The one instruction at which a child's userfaultfd is in the restore worker's descriptor table and nowhere else: the
 * kernel has delivered the event of the fork, the keeper holds nothing yet. The worker is killed there. Its heir has the
 * descriptor; without it the child's missing pages would read as zeros, which the child says.
 */

const mib = 96
/** The lazy phase is then a few seconds long. */
const linkMbit = 200

t.test('kill -9 between a fork and the keeper', { timeout: 300_000 }, (t) =>
  withOneWayLab((lab) =>
    explained(t, lab, async () => {
      await slowLink(lab, linkMbit)
      const driver = new Driver(lab)
      const workload = await Restless.start(lab, { mib, kind: 'wild' })
      const fault = `destination-crash-fork:${baseSeed}`
      const started = await driver.start(workload.pid, { mode: 'postcopy', fault })
      await reached(started.destination, started.id, ['running'])
      const first = driver.worker('b', 'destination', started.id)
      workload.fork(true)
      await eventually(
        'another worker',
        () => {
          const now = driver.worker('b', 'destination', started.id)
          return now !== undefined && now !== first
        },
        { timeoutMs: 30_000, everyMs: 10 },
      )
      await workload.runs()
      workload.fork(false)
      const source = await ended(started.source, started.id, 120_000)
      const destination = await ended(started.destination, started.id, 120_000)
      t.equal(source.state, 'finished', JSON.stringify(source.error))
      t.equal(destination.state, 'finished', JSON.stringify(destination.error))
      await endsWellOn(lab, workload, started.id)
      t.ok(hasNoGap(workload), 'its log goes on without a gap')
      await nothingLeft(lab, [], 40_000)
      workload.remove()
    }),
  ),
)
