// test-timeout-s: 900
import { setTimeout as sleep } from 'node:timers/promises'
import { seededRandom } from '@pageferry/base'
import { type Lab, migrateInLab } from '@pageferry/lab'
import { kill9 } from '@pageferry/testing/processes'
import { baseSeed, soak } from '@pageferry/testing/seeds'
import t, { type Test } from 'tap'
import { Driver, ended, type Started, statusOf } from '../support/driver.js'
import { explained, withOneWayLab } from '../support/in-lab.js'
import { nothingLeft } from '../support/nothing-left.js'
import { endsWellOn, hasNoGap, Restless } from '../support/restless.js'

/*
 * Failing and then succeeding: whatever goes wrong before the commit, the workload runs on where it was, with
 * everything it had, and the next migration moves it.
 */

/** Fails a migration in some way; answers when that has been done. */
type Strike = (lab: Lab, driver: Driver, started: Started, random: () => number) => Promise<void>

async function failsThenSucceeds(t: Test, nrFailures: number, strike: Strike) {
  await withOneWayLab((lab) =>
    explained(t, lab, async () => {
      const driver = new Driver(lab)
      const random = seededRandom(baseSeed)
      const workload = await Restless.start(lab, { mib: 24, kind: 'calm' })
      const clean = workload.traces()
      const allowed = [lab.a.outerPid(workload.pid) ?? 0]
      let last: Started | null = null
      for (let i = 0; i < nrFailures; i++) {
        const started = await driver.start(workload.pid)
        await strike(lab, driver, started, random)
        const source = await ended(started.source, started.id)
        const what = `failure ${i}, seed ${baseSeed}: ${source.error?.message}`
        if (source.state === 'finished') {
          last = started
          t.comment(`${what}: too late`)
          break
        }
        t.equal(source.workload?.where, 'running', what)
        await ended(started.destination, started.id)
        await workload.runs()
        t.same(workload.traces(), clean, what)
        await nothingLeft(lab, allowed, 45_000)
      }
      if (last === null) {
        last = await driver.start(workload.pid)
        t.equal((await ended(last.source, last.id)).state, 'finished', 'then a migration succeeds')
      }
      t.equal((await ended(last.destination, last.id)).state, 'finished')
      await endsWellOn(lab, workload, last.id)
      t.ok(hasNoGap(workload), 'its log has no gap')
      await nothingLeft(lab)
      workload.remove()
    }),
  )
}

t.test('the restore worker dies before the commit', { timeout: 600_000 }, (t) =>
  failsThenSucceeds(t, soak ? 40 : 6, async (_lab, driver, { id, source }, random) => {
    const worker = driver.worker('b', 'destination', id)
    const wanted = ['precopy', 'freezing', 'dumping', 'awaitingReady']
    if (random() < 0.5) await untilState(source, id, wanted.slice(Math.floor(random() * 2)))
    await sleep(random() * 60)
    kill9(worker)
  }),
)

t.test('the restore-service dies before the commit', { timeout: 600_000 }, (t) =>
  failsThenSucceeds(t, 2, async (lab, _driver, { id, source }, random) => {
    await untilState(source, id, ['precopy'])
    await sleep(random() * 60)
    kill9(lab.b.services.get('destination')?.process.pid)
    await sleep(300)
    await lab.b.startService('destination')
  }),
)

t.test('the dump-service dies before the commit', { timeout: 600_000 }, (t) =>
  failsThenSucceeds(t, 2, async (lab, _driver, { id, source }, random) => {
    await untilState(source, id, ['precopy'])
    await sleep(random() * 60)
    kill9(lab.a.services.get('source')?.process.pid)
    await sleep(300)
    await lab.a.startService('source')
  }),
)

t.test('it is cancelled', { timeout: 600_000 }, (t) =>
  failsThenSucceeds(t, soak ? 40 : 6, async (_lab, _driver, { id, source, destination }, random) => {
    await sleep(random() * 1200)
    // Either side can be asked; after the commit both refuse.
    await (random() < 0.7 ? source : destination).cancel(id).catch(() => {})
  }),
)

async function untilState(client: Started['source'], id: string, states: string[]): Promise<void> {
  for (;;) {
    const status = await statusOf(client, id)
    if (status !== undefined && (states.includes(status.state) || status.endedAt !== undefined)) return
    await sleep(5)
  }
}

t.test('what fails in the restore is no refusal: the workload was touched', { timeout: 120_000 }, (t) =>
  withOneWayLab((lab) =>
    explained(t, lab, async () => {
      const workload = await Restless.start(lab, { mib: 24, kind: 'calm' })
      const during = await migrateInLab(lab, workload.pid, { injectFault: 'destination-error-restore' })
      t.match(during, { migrated: false, touched: true, source: { workload: { where: 'running' } } })
      const before = await migrateInLab(lab, workload.pid, { injectFault: 'destination-error-skeleton' })
      t.match(before, { migrated: false, touched: false, source: { workload: { where: 'running' } } })
      await workload.runs()
      workload.conclude()
      await workload.endedWell()
      workload.remove()
    }),
  ),
)
