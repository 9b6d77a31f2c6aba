// test-timeout-s: 7200
// Eight threads that fault, give back, map, move and fork at random while their pages are pushed, by seeds:
// PAGEFERRY_SOAK=1 for 50 seeds of 60 s, PAGEFERRY_SEEDS=n and PAGEFERRY_SECONDS=s for others, PAGEFERRY_SEED=n to
// begin with that seed. What a seed has chosen is in the name of its test.

import { withLink } from '@pageferry/bench'
import type { Lab, MigrationOptions } from '@pageferry/lab'
import type { Test } from 'tap'
import { baseSeed, inLab, type Mode, users, Workload } from './harness.js'

const soak = process.env.PAGEFERRY_SOAK === '1'
const seeds = Number(process.env.PAGEFERRY_SEEDS ?? (soak ? 50 : 4))
const seconds = Number(process.env.PAGEFERRY_SECONDS ?? (soak ? 60 : 4))

/** For each thread's arena: its nomads are a quarter more, and the library is as large as one arena. */
const pagesPerThread = seconds > 10 ? 4096 : 1024
const allPages = pagesPerThread * (8 * 1.25 + 1)
const pageBits = 4096 * 8
/** Pushing alone would take about as long as the threads take to reach all of their memory. */
const rateMbit = Math.ceil((allPages * pageBits) / 1e6 / seconds)

interface Variant {
  mode: Mode
  bulkLanes: number
  verify: boolean
  pushDelayMs: number | undefined
  user: (typeof users)[number]
}

/** Any four seeds in a row see every number of lanes with and without comparing, and rounds before the move. */
function variantOf(seed: number): Variant {
  return {
    mode: seed % 4 === 1 ? 'hybrid' : 'postcopy',
    bulkLanes: seed % 2 === 0 ? 1 : 3,
    verify: seed % 4 < 2,
    // Faults alone for the first half: later every pushed page meets a memory that has changed a lot.
    pushDelayMs: seed % 4 === 3 ? seconds * 500 : undefined,
    user: users[(seed >> 2) % 2] as (typeof users)[number],
  }
}

async function underStress(t: Test, lab: Lab, seed: number, variant: Variant): Promise<void> {
  const { user, ...options } = variant
  const args = [String(seconds), String(pagesPerThread), ...(options.mode === 'hybrid' ? ['dirty'] : [])]
  const workload = await Workload.start(lab, 'stress', { uid: user.uid, seed, args })
  await workload.steps(20)
  const link = { rttMs: 0, jitterMs: 0, rateMbit }
  const move = (migration: MigrationOptions) =>
    withLink(lab.a, link, (via) => workload.migrate({ ...migration, via }))
  const { report } = await move(options)
  await workload.steps(20)
  workload.stop()
  await workload.ended(0)
  const { faults, pushedPages, drainMs, pages } = report
  const done = workload.lines.at(-2)
  t.match(done, /^[1-9]\d* operations, \d+ children$/, 'it has worked, and every byte was right')
  t.ok(faults.count > 0, `${faults.count} faults were sent while it ran`)
  t.ok(pushedPages > 0, `${pages.lazy} pages were lazy, and ${pushedPages} came unasked, for children too`)
  t.comment(`the lazy phase lasted ${Math.round(drainMs)} ms: ${done}`)
  workload.remove()
}

await inLab(`${seconds} s of stress`, async (t, lab) => {
  for (let seed = baseSeed; seed < baseSeed + seeds; seed++) {
    const variant = variantOf(seed)
    const { mode, bulkLanes, verify, pushDelayMs = 0, user } = variant
    const chosen = `${mode}, ${bulkLanes} lanes, ${verify ? 'compared' : 'not compared'}, push after ${pushDelayMs} ms`
    await t.test(`seed ${seed}: ${chosen}, as ${user.name}`, (t) => underStress(t, lab, seed, variant))
  }
})
