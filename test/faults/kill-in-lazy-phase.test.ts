// test-timeout-s: 900
import { setTimeout as sleep } from 'node:timers/promises'
import { seededRandom } from '@pageferry/base'
import type { Lab } from '@pageferry/lab'
import { kill9 } from '@pageferry/testing/processes'
import { baseSeed, soak } from '@pageferry/testing/seeds'
import t from 'tap'
import { Driver, ended, reached, type Started } from '../support/driver.js'
import { explained, slowLink, withOneWayLab } from '../support/in-lab.js'
import { nothingLeft } from '../support/nothing-left.js'
import { endsWellOn, hasNoGap, Restless } from '../support/restless.js'

/*
 * Everything that can die is killed while the workload runs on the destination and its memory is still on the way:
 * it must end with status 0 and right memory. The cable between the hosts is made slow, so that this phase lasts for
 * seconds; the workload discards, moves and unmaps memory and forks all the time.
 */

const mib = 96
/** The lazy phase is then a few seconds long. */
const linkMbit = 200
const rounds = Number(process.env.PAGEFERRY_ROUNDS ?? (soak ? 20 : 1))

interface Victim {
  name: string
  /** Kills it once, and restarts what does not restart by itself. */
  strike(lab: Lab, driver: Driver, started: Started): Promise<void>
}

const victims: Victim[] = [
  {
    name: 'the restore worker',
    strike: async (_lab, driver, { id }) => void kill9(driver.worker('b', 'destination', id)),
  },
  {
    name: 'the restore-service',
    strike: async (lab) => {
      kill9(lab.b.services.get('destination')?.process.pid)
      await sleep(200)
      await lab.b.startService('destination')
    },
  },
  {
    name: 'the dump worker',
    strike: async (_lab, driver, { id }) => void kill9(driver.worker('a', 'source', id)),
  },
  {
    name: 'the dump-service',
    strike: async (lab) => {
      kill9(lab.a.services.get('source')?.process.pid)
      await sleep(200)
      await lab.a.startService('source')
    },
  },
]

const only = process.env.PAGEFERRY_VICTIM

t.test('kill -9 in the lazy phase', { timeout: 900_000 }, async (t) => {
  for (const [v, victim] of victims.entries()) {
    if (only !== undefined && !victim.name.includes(only)) continue
    for (const kind of ['calm', 'wild'] as const) {
      if (process.env.PAGEFERRY_KIND !== undefined && process.env.PAGEFERRY_KIND !== kind) continue
      await t.test(`${victim.name}, ${kind}`, { timeout: 600_000 }, async (t) => {
        await withOneWayLab((lab) =>
          explained(t, lab, async () => {
            await slowLink(lab, linkMbit)
            const driver = new Driver(lab)
            for (let round = 0; round < rounds; round++) {
              const seed = baseSeed + 1000 * v + round
              const random = seededRandom(seed)
              const workload = await Restless.start(lab, { mib, kind })
              const started = await driver.start(workload.pid, {
                mode: 'postcopy',
                newPidNamespace: round % 2 === 1,
              })
              await reached(started.destination, started.id, ['running'])
              if (kind === 'wild') workload.fork(true)
              const kills = 1 + Math.floor(random() * 3)
              for (let kill = 0; kill < kills; kill++) {
                await sleep(random() * 1000)
                await victim.strike(lab, driver, started)
              }
              await workload.runs()
              workload.fork(false)
              const source = await ended(started.source, started.id, 120_000)
              const destination = await ended(started.destination, started.id, 120_000)
              t.equal(
                source.state,
                'finished',
                `seed ${seed}: ${kills} kills: ${JSON.stringify(source.error)}`,
              )
              t.equal(destination.state, 'finished', `${JSON.stringify(destination.error)}`)
              const { verify } = destination.report as { verify: { mismatches: number } | null }
              t.equal(verify?.mismatches ?? 0, 0, `pages compared: ${JSON.stringify(verify)}`)
              await endsWellOn(lab, workload, started.id)
              t.ok(hasNoGap(workload), 'its log goes on without a gap')
              await nothingLeft(lab, [], 40_000)
              workload.remove()
              if (!t.passing()) break
            }
          }),
        )
      })
    }
  }
})
