// test-timeout-s: 960
// It waits for most of its time. The longer limit lets it begin early, beside files that compute: last, it ran alone.

import { execFile } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { Lab } from '@pageferry/lab'
import t from 'tap'
import { Driver, ended, reached } from '../support/driver.js'
import { explained, slowLink, withOneWayLab } from '../support/in-lab.js'
import { nothingLeft } from '../support/nothing-left.js'
import { endsWellOn, hasNoGap, Restless } from '../support/restless.js'

/* The cable between the hosts is pulled: before the commit the workload stays, after it everything waits. */

async function link(lab: Lab, up: boolean): Promise<void> {
  const { status, stderr } = await lab.a.run(['ip', 'link', 'set', 'eth0', up ? 'up' : 'down'], { cwd: '/' })
  if (status !== 0) throw new Error(`ip link: ${stderr}`)
}

function run(args: string[]): Promise<{ status: number; said: string }> {
  return new Promise((resolve) =>
    execFile(process.execPath, args, (error, stdout, stderr) =>
      resolve({ status: error === null ? 0 : Number(error.code), said: stdout + stderr }),
    ),
  )
}

t.test('a break of some seconds in the lazy phase', { timeout: 300_000 }, (t) =>
  withOneWayLab((lab) =>
    explained(t, lab, async () => {
      await slowLink(lab, 200)
      const driver = new Driver(lab)
      const workload = await Restless.start(lab, { mib: 96, kind: 'wild' })
      const started = await driver.start(workload.pid, { mode: 'postcopy' })
      await reached(started.destination, started.id, ['running'])
      await sleep(300)
      await link(lab, false)
      // Longer than the three heartbeats after which a silent lane counts as lost.
      await sleep(22_000)
      await link(lab, true)
      const source = await ended(started.source, started.id, 90_000)
      t.equal(source.state, 'finished')
      const destination = await ended(started.destination, started.id)
      t.equal(destination.state, 'finished')
      t.equal((destination.report as { verify: { mismatches: number } }).verify.mismatches, 0)
      await endsWellOn(lab, workload, started.id)
      t.ok(hasNoGap(workload), 'its log goes on without a gap')
      await nothingLeft(lab)
      workload.remove()
    }),
  ),
)

t.test('a break before the commit', { timeout: 300_000 }, (t) =>
  withOneWayLab((lab) =>
    explained(t, lab, async () => {
      await slowLink(lab, 100)
      const driver = new Driver(lab)
      const workload = await Restless.start(lab, { mib: 96, kind: 'calm' })
      const clean = workload.traces()
      const started = await driver.start(workload.pid)
      await reached(started.source, started.id, ['precopy'])
      await sleep(500)
      await link(lab, false)
      const source = await ended(started.source, started.id, 60_000)
      t.equal(source.state, 'failed')
      t.equal(source.error?.code, 'PEER_UNREACHABLE', `it says: ${source.error?.message}`)
      t.equal(source.workload?.where, 'running')
      await workload.runs()
      t.same(workload.traces(), clean)
      await link(lab, true)
      const destination = await ended(started.destination, started.id, 60_000)
      t.equal(destination.state, 'failed')
      await nothingLeft(lab, [lab.a.outerPid(workload.pid) ?? 0], 40_000)
      const again = await driver.start(workload.pid)
      t.equal(
        (await ended(again.source, again.id, 60_000)).state,
        'finished',
        'the second migration succeeds',
      )
      await endsWellOn(lab, workload, again.id)
      await nothingLeft(lab)
      workload.remove()
    }),
  ),
)

t.test('a break in the middle of the handover', { timeout: 300_000 }, (t) =>
  withOneWayLab((lab) =>
    explained(t, lab, async () => {
      const driver = new Driver(lab)
      const workload = await Restless.start(lab, { mib: 24, kind: 'calm' })
      const clean = workload.traces()
      // Ready is on its way, or Commit is: whether the source has committed depends on a millisecond.
      const started = await driver.start(workload.pid, { fault: 'source-delay-commit:3' })
      await reached(started.source, started.id, [
        'awaitingReady',
        'committed',
        'serving',
        'released',
        'finished',
      ])
      await link(lab, false)
      await sleep(20_000)
      await link(lab, true)
      const source = await ended(started.source, started.id, 90_000)
      const destination = await ended(started.destination, started.id, 90_000)
      t.equal(source.state === 'finished', destination.state === 'finished', 'both say the same')
      t.comment(`it ended as ${source.state}: ${source.error?.message}`)
      if (source.state === 'finished') await endsWellOn(lab, workload, started.id)
      else {
        await workload.runs()
        t.same(workload.traces(), clean)
        workload.conclude()
        await workload.endedWell()
      }
      t.ok(hasNoGap(workload), 'its log goes on without a gap')
      await nothingLeft(lab, [], 45_000)
      workload.remove()
    }),
  ),
)

t.test('the command line says so', { timeout: 300_000 }, (t) =>
  withOneWayLab((lab) =>
    explained(t, lab, async () => {
      await slowLink(lab, 100)
      const workload = await Restless.start(lab, { mib: 96, kind: 'calm' })
      const program = fileURLToPath(new URL('../../packages/cli/bin/pageferry.js', import.meta.url))
      const args = ['migrate', '--source', lab.a.url('source'), '--destination', lab.b.url('destination')]
      setTimeout(() => void link(lab, false), 2500)
      const { status, said } = await run([program, ...args, '--pid', String(workload.pid)])
      t.equal(status, 4, said)
      t.match(said, /runs on the source/)
      await workload.runs()
      workload.conclude()
      await workload.endedWell()
      workload.remove()
    }),
  ),
)
