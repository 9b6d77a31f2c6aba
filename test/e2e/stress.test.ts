// test-timeout-s: 7200
// Eight threads that fault, give back, map, move and fork at random while their pages are pushed, by seeds:
// PAGEFERRY_SOAK=1 for 50 seeds of 60 s, PAGEFERRY_SEEDS=n and PAGEFERRY_SECONDS=s for others, PAGEFERRY_SEED=n to
// begin with that seed. What a seed has chosen is in the name of its test. Half of them also let threads move memory to
// where another thread has just made room, all of them with PAGEFERRY_ROAMING=1, none with PAGEFERRY_ROAMING=0; and of
// those some have the restore worker killed meanwhile, all with PAGEFERRY_KILLS=n, n times.

import { type LinkOptions, withRelay } from '@pageferry/bench'
import type { Lab } from '@pageferry/lab'
import type { VerifySetting } from '@pageferry/migration'
import { baseSeed, soak } from '@pageferry/testing/seeds'
import type { Test } from 'tap'
import { type Mode, users } from '../support/combinations.js'
import { killsOfWorker } from '../support/driver.js'
import { inOneWayLab } from '../support/in-lab.js'
import { Workload } from '../support/workload.js'

const seeds = Number(process.env.PAGEFERRY_SEEDS ?? (soak ? 50 : 5))
const seconds = Number(process.env.PAGEFERRY_SECONDS ?? (soak ? 60 : 4))
const { PAGEFERRY_ROAMING, PAGEFERRY_KILLS } = process.env
/** Four, five and two: within twenty seeds in a row each variant is seen with all of it. */
const isRoaming = (seed: number): boolean =>
  PAGEFERRY_ROAMING === undefined ? seed % 4 >= 2 : PAGEFERRY_ROAMING === '1'
const killsOf = (seed: number): number =>
  PAGEFERRY_KILLS === undefined ? (isRoaming(seed) && seed % 4 === 3 ? 2 : 0) : Number(PAGEFERRY_KILLS)

interface Variant {
  mode: Mode
  bulkLanes: number
  verify: VerifySetting
  compression: 'auto' | 'off' | 'zstd'
  /** Faults alone for so long: later every pushed page meets a memory that has changed a lot. */
  pushDelayMs: number
  /** For so long there is memory that was not touched yet. 0: the threads and the link are as fast as they can. */
  lastsS: number
}

/** Taken in turn. Five and two users have no common divisor: ten seeds in a row see each as both. */
const variants: Variant[] = [
  {
    mode: 'postcopy',
    bulkLanes: 1,
    verify: 'before-resume',
    compression: 'auto',
    pushDelayMs: 0,
    lastsS: seconds,
  },
  {
    mode: 'hybrid',
    bulkLanes: 3,
    verify: 'after-resume',
    compression: 'zstd',
    pushDelayMs: 0,
    lastsS: seconds,
  },
  { mode: 'postcopy', bulkLanes: 1, verify: 'off', compression: 'off', pushDelayMs: 0, lastsS: seconds },
  {
    mode: 'postcopy',
    bulkLanes: 3,
    verify: 'off',
    compression: 'zstd',
    pushDelayMs: seconds * 500,
    lastsS: seconds,
  },
  { mode: 'postcopy', bulkLanes: 3, verify: 'after-resume', compression: 'zstd', pushDelayMs: 0, lastsS: 0 },
]

const pageBits = 4096 * 8

/** Of each thread's arena; its nomads are a quarter more, and the library is as large as one arena. */
function pagesFor({ lastsS }: Variant): number {
  return lastsS > 0 && lastsS <= 10 ? 1024 : 4096
}

/** Pushing alone would take about as long as the threads take to reach all of their memory. */
function linkFor(variant: Variant): LinkOptions | undefined {
  if (variant.lastsS === 0) return undefined
  const allPages = pagesFor(variant) * (8 * 1.25 + 1)
  return { rttMs: 0, jitterMs: 0, rateMbit: Math.ceil((allPages * pageBits) / 1e6 / variant.lastsS) }
}

async function underStress(t: Test, lab: Lab, seed: number, variant: Variant, uid?: number): Promise<void> {
  const { lastsS, ...migration } = variant
  const nrKills = killsOf(seed)
  const extra = [...(migration.mode === 'hybrid' ? ['dirty'] : []), ...(isRoaming(seed) ? ['roaming'] : [])]
  const args = [String(lastsS), String(pagesFor(variant)), ...extra]
  const workload = await Workload.start(lab, 'stress', { uid, seed, args })
  await workload.steps(20)
  const killing = killsOfWorker(lab, nrKills, seconds * 1000, seed)
  const link = linkFor(variant)
  const move = (via?: (dataUrl: string) => Promise<string>) =>
    workload.migrate({ ...migration, via }, killing.onStatus)
  const { report } = await (link === undefined ? move() : withRelay(lab.a, link, move))
  await workload.steps(20)
  workload.stop()
  await workload.ended(0)
  const { faults, pushedPages, drainMs, pages } = report
  const done = workload.lines.at(-2)
  t.match(done, /^[1-9]\d* operations, \d+ children$/, 'it has worked, and every byte was right')
  if (nrKills === 0) t.ok(faults.count > 0, `${faults.count} faults were sent while it ran`)
  if (nrKills === 0)
    t.ok(pushedPages > 0, `${pages.lazy} pages were lazy, and ${pushedPages} came unasked, for children too`)
  t.comment(`the lazy phase lasted ${Math.round(drainMs)} ms, ${killing.nrKilled} kills: ${done}`)
  workload.remove()
}

await inOneWayLab(`${seconds} s of stress`, async (t, lab) => {
  for (let seed = baseSeed; seed < baseSeed + seeds; seed++) {
    const variant = variants[seed % variants.length] as Variant
    const user = users[seed % users.length] as (typeof users)[number]
    const { mode, bulkLanes, verify, compression, pushDelayMs, lastsS } = variant
    const chosen = [
      ...[mode, `${bulkLanes} lanes`, `verify ${verify}`, `zstd ${compression}`],
      ...(pushDelayMs > 0 ? [`push after ${pushDelayMs} ms`] : []),
      ...(lastsS === 0 ? ['as fast as it can'] : []),
      ...(isRoaming(seed) ? ['roaming'] : []),
      ...(killsOf(seed) > 0 ? [`${killsOf(seed)} kills`] : []),
    ]
    await t.test(`seed ${seed}: ${chosen.join(', ')}, as ${user.name}`, (t) =>
      underStress(t, lab, seed, variant, user.uid),
    )
  }
})
