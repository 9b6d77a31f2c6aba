import { runTableOf } from '@pageferry/base'
import fc from 'fast-check'
import t from 'tap'
import { type Area, AreaMap } from '../src/areas.js'
import { PE_LAZY, PE_PARENT, PE_PRESENT, pagemapEntries, readPagemapEntries } from '../src/final-pagemap.js'
import { PageSet } from '../src/page-set.js'
import { type FrozenMemory, SourcePages } from '../src/source-pages.js'
import { WriteHistory } from '../src/write-history.js'
import { fcOptions } from './fc.js'
import { ModelDestination, ModelSource, modelPages } from './migration-model.js'

const anon: Area = {
  start: 0x10,
  nrPages: 0x10,
  kind: 'anon',
  prot: 3,
  flags: 0x22,
  madv: 0,
  growsDown: false,
  lazyEligible: true,
  offset: 0n,
}

function frozen(areas: AreaMap, there: PageSet, more: Partial<FrozenMemory> = {}): FrozenMemory {
  return {
    areas,
    presentOrSwapped: there,
    written: new PageSet(),
    neverLazy: new PageSet(),
    trackingTrusted: true,
    mode: 'hybrid',
    ...more,
  }
}

/** The whole area was sent in round 1. */
function afterRoundOne(areas: AreaMap): SourcePages {
  const source = new SourcePages()
  source.noteAreas(areas)
  for (const { start, nrPages } of areas.areas) source.noteWritten(start, nrPages)
  source.noteSent(source.roundTodo().runTable())
  return source
}

t.test('the 2016 scenario: ten pages unchanged since the pre-dump, six written', async (t) => {
  const areas = new AreaMap([anon])
  const final = afterRoundOne(areas).finalPagemap(
    frozen(areas, PageSet.of([0x10, 16]), { written: PageSet.of([0x1a, 6]) }),
  )
  t.same(
    [...pagemapEntries(final)],
    [
      { first: 0x10, nr: 10, flags: PE_PARENT },
      { first: 0x1a, nr: 6, flags: PE_LAZY },
    ],
  )
  t.same(final.counts, { parent: 10, lazy: 6, present: 0, zero: 0, hole: 0 })
})

t.test('an idle gigabyte is PARENT to the last page', async (t) => {
  const areas = new AreaMap([{ ...anon, nrPages: 262144 }])
  const there = PageSet.of([0x10, 262144])
  t.equal(afterRoundOne(areas).finalPagemap(frozen(areas, there)).counts.parent, 262144)
})

t.test('a page sent in round 1 and discarded since is a hole, whatever the tracker says', async (t) => {
  const areas = new AreaMap([anon])
  const final = afterRoundOne(areas).finalPagemap(frozen(areas, PageSet.of([0x10, 4], [0x18, 8])))
  t.same(final.counts, { parent: 12, lazy: 0, present: 0, zero: 0, hole: 4 })
})

t.test('never-lazy pages, holes among them, and ineligible areas are PRESENT', async (t) => {
  const areas = new AreaMap([anon, { ...anon, start: 0x40, lazyEligible: false }])
  const there = PageSet.of([0x10, 8], [0x40, 4])
  const neverLazy = PageSet.of([0x17, 2])
  const source = new SourcePages()
  source.noteAreas(areas)
  const final = source.finalPagemap(frozen(areas, there, { neverLazy, mode: 'postcopy' }))
  t.same(
    [...pagemapEntries(final)],
    [
      { first: 0x10, nr: 7, flags: PE_LAZY },
      { first: 0x17, nr: 2, flags: PE_PRESENT },
      { first: 0x40, nr: 4, flags: PE_PRESENT },
    ],
  )
  t.equal(source.finalPagemap(frozen(areas, there, { mode: 'precopy' })).counts.lazy, 0)
})

t.test('hot pages are promoted within the budget, in hybrid mode only', async (t) => {
  const areas = new AreaMap([anon])
  const history = new WriteHistory()
  history.record(PageSet.of([0x10, 8]), 2)
  history.record(PageSet.of([0x14, 2]), 3)
  const there = PageSet.of([0x10, 16])
  const hot = { written: PageSet.of([0x10, 8]), history, presentBudgetPages: 3 }
  const final = afterRoundOne(areas).finalPagemap(frozen(areas, there, hot))
  t.same(
    [...final.present.runs()],
    [
      [0x10, 1],
      [0x14, 2],
    ],
  )
  t.equal(final.promoted, 3)
  t.equal(afterRoundOne(areas).finalPagemap(frozen(areas, there, { ...hot, mode: 'postcopy' })).promoted, 0)
  const written = PageSet.of([0x10, 8], [0x1e, 1])
  const all = { ...hot, written, presentBudgetPages: 9 }
  t.equal(afterRoundOne(areas).finalPagemap(frozen(areas, there, all)).counts.lazy, 0, 'few, hot or not')
  const most = { ...all, presentBudgetPages: 8 }
  t.same(
    [
      ...afterRoundOne(areas)
        .finalPagemap(frozen(areas, there, most))
        .lazy.runs(),
    ],
    [[0x1e, 1]],
  )
})

t.test('nothing is PARENT or a known zero when tracking cannot be trusted', async (t) => {
  const areas = new AreaMap([anon])
  const source = afterRoundOne(areas)
  source.noteWritten(0x10, 1)
  source.roundTodo()
  source.noteZero(runTableOf([0x10, 1]))
  const there = PageSet.of([0x10, 16])
  t.same(source.finalPagemap(frozen(areas, there)).counts, {
    parent: 15,
    lazy: 0,
    present: 0,
    zero: 1,
    hole: 0,
  })
  const untrusted = source.finalPagemap(frozen(areas, there, { trackingTrusted: false }))
  t.same(untrusted.counts, { parent: 0, lazy: 16, present: 0, zero: 0, hole: 0 })
})

t.test('rounds: late news, leftovers and lost mappings', async (t) => {
  const areas = new AreaMap([anon])
  const source = new SourcePages()
  source.noteAreas(areas)
  source.noteWritten(0x10, 8)
  source.noteWritten(0x100, 5)
  t.equal(source.dirtyCount, 8, 'what has no area yet is not due')
  t.same([...source.roundTodo().runs()], [[0x10, 8]])
  source.noteWritten(0x12, 1)
  source.noteSent(runTableOf([0x10, 6]))
  t.equal(source.sentCount, 5, 'written again after it was taken out: not clean')
  t.same(
    [...source.roundTodo().runs()],
    [
      [0x12, 1],
      [0x16, 2],
    ],
  )
  source.noteSent(source.roundTodo().runTable())
  t.equal(source.dirtyCount, 0)
  source.noteAreas(new AreaMap([{ ...anon, flags: 0x4022 }]))
  t.equal(source.sentCount, 0, 'the destination maps it anew')
  t.equal(source.dirtyCount, 8, 'and needs it again although nobody wrote')
  source.noteUnmapped(0x10, 8)
  t.equal(source.dirtyCount, 0)
})

t.test('a page is never both sent and known to be zero', async (t) => {
  const source = new SourcePages()
  source.noteAreas(new AreaMap([anon]))
  source.noteWritten(0x10, 2)
  source.roundTodo()
  source.noteZero(runTableOf([0x10, 2]))
  source.noteSent(runTableOf([0x11, 1]))
  t.same([source.sentCount, source.zeroCount], [1, 1])
})

t.test('pagemap entries that overlap or have no known flag are refused', async (t) => {
  t.throws(() =>
    readPagemapEntries([
      { first: 1, nr: 2, flags: PE_LAZY },
      { first: 2, nr: 2, flags: PE_PARENT },
    ]),
  )
  t.throws(() => readPagemapEntries([{ first: 1, nr: 2, flags: 0 }]))
})

// Whole migrations on a model.

const page = fc.nat(modelPages - 1)
const nr = fc.integer({ min: 1, max: 8 })
const content = fc.nat(5)
const workloadStep = fc.oneof(
  { weight: 8, arbitrary: fc.record({ op: fc.constant('write' as const), page, content }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('read' as const), page }) },
  { weight: 4, arbitrary: fc.record({ op: fc.constant('discard' as const), page, nr }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('punch' as const), page, nr }) },
  {
    weight: 3,
    arbitrary: fc.record({
      op: fc.constant('map' as const),
      page,
      nr,
      kind: fc.constantFrom('anon', 'anon', 'heap', 'file-private', 'shared-anon', 'file-shared'),
    }),
  },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('unmap' as const), page, nr }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('remap' as const), page, to: page, nr }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('swap' as const), page }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('markers' as const), page, nr }) },
  {
    weight: 1,
    arbitrary: fc.record({ op: fc.constant('prot' as const), page, nr, prot: fc.constantFrom(1, 3) }),
  },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('lock' as const), page, nr, on: fc.boolean() }) },
)
const deviceStep = fc.record({ op: fc.constant('device' as const), page, content })
type WorkloadStep = typeof workloadStep extends fc.Arbitrary<infer T> ? T : never
type DeviceStep = typeof deviceStep extends fc.Arbitrary<infer T> ? T : never

const migrationHistory = fc.record({
  /** Five areas of eight pages, and what is written before the first round. */
  layout: fc.array(fc.constantFrom('anon', 'anon', 'heap', 'file-private', 'shared-anon'), {
    minLength: 5,
    maxLength: 5,
  }),
  filled: fc.array(fc.option(content, { freq: 4 }), { minLength: modelPages, maxLength: modelPages }),
  steps: fc.array(
    fc.oneof(
      { weight: 12, arbitrary: workloadStep },
      {
        weight: 4,
        arbitrary: fc.record({ op: fc.constant('send' as const), nr: fc.integer({ min: 1, max: 40 }) }),
      },
      {
        weight: 3,
        arbitrary: fc.record({
          op: fc.constant('round' as const),
          race: fc.array(workloadStep, { maxLength: 3 }),
        }),
      },
    ),
    { maxLength: 60, size: 'max' },
  ),
  device: fc.option(deviceStep, { freq: 8 }),
  mode: fc.constantFrom('hybrid', 'precopy', 'postcopy'),
  neverLazy: fc.array(page, { maxLength: 3 }),
  presentBudgetPages: fc.nat(4),
})

function run(source: ModelSource, pages: SourcePages, step: WorkloadStep | DeviceStep): void {
  if (step.op === 'write') source.write(step.page, step.content)
  else if (step.op === 'read') source.read(step.page)
  else if (step.op === 'discard') source.discard(step.page, step.nr)
  else if (step.op === 'punch') source.punch(step.page, step.nr)
  else if (step.op === 'map') source.map(step.page, step.nr, step.kind as 'anon')
  else if (step.op === 'unmap') source.unmap(step.page, step.nr)
  else if (step.op === 'remap') source.remap(step.page, step.to, step.nr)
  else if (step.op === 'swap') source.swapOut(step.page)
  else if (step.op === 'markers') pages.noteWrittenPages(source.protectRange(step.page, step.nr))
  else if (step.op === 'prot') source.change(step.page, step.nr, { prot: step.prot })
  else if (step.op === 'lock') source.change(step.page, step.nr, { locked: step.on })
  else source.deviceWrite(step.page, step.content)
}

function check(condition: boolean, what: string): void {
  if (!condition) throw new Error(what)
}

t.test(
  'whatever the workload did between and during rounds, the destination equals the source',
  async (t) => {
    let runs = 0
    const seen = { parent: 0, lazy: 0, present: 0, zero: 0, hole: 0 }
    fc.assert(
      fc.property(migrationHistory, (history) => {
        runs++
        const workload = new ModelSource()
        const pages = new SourcePages()
        const destination = new ModelDestination()
        const writes = new WriteHistory()
        let todo = new PageSet()
        let round = 0
        history.layout.forEach((kind, i) => {
          workload.map(8 * i, 8, kind as 'anon')
        })
        history.filled.forEach((value, p) => {
          if (value !== null) workload.write(p, value)
        })

        for (const step of history.steps) {
          if (step.op === 'round') {
            round++
            const areas = workload.areas()
            pages.noteAreas(areas)
            destination.applyAreas(areas)
            for (const race of step.race) run(workload, pages, race)
            const written = workload.scan()
            pages.noteWrittenPages(written)
            if (round > 1) writes.record(written, round)
            todo = pages.roundTodo()
          } else if (step.op === 'send') {
            const out = new Float64Array(2 * step.nr)
            const { nrRuns } = todo.fillRunTable(out, 0, step.nr, step.nr)
            todo.removeRuns(out, nrRuns)
            for (const [first, count] of PageSet.fromRuns(out, nrRuns).runs()) {
              for (let p = first; p < first + count; p++) {
                const read = workload.read(p)
                if (read === undefined) continue
                if (read === 0) pages.noteZero(runTableOf([p, 1]))
                else {
                  destination.install(p, read)
                  pages.noteSent(runTableOf([p, 1]))
                }
              }
            }
          } else run(workload, pages, step)
        }
        if (history.device !== null) run(workload, pages, history.device)

        const areas = workload.areas()
        const neverLazy = PageSet.of(...history.neverLazy.map((p) => [p, 1] as const))
        const mode = history.mode as FrozenMemory['mode']
        const final = pages.finalPagemap({
          areas,
          ...workload.finalScan(),
          neverLazy,
          trackingTrusted: !workload.hadDeviceWrites,
          mode,
          history: writes,
          presentBudgetPages: history.presentBudgetPages,
        })
        const eligible = areas.pages((area) => area.lazyEligible)
        check(final.lazy.clone().subtract(eligible).isEmpty, 'lazy outside eligible areas')
        check(final.lazy.clone().intersect(neverLazy).isEmpty, 'never-lazy page is lazy')
        check(mode !== 'precopy' || final.lazy.isEmpty, 'lazy in precopy')
        check(final.promoted <= (mode === 'hybrid' ? history.presentBudgetPages : 0), 'budget exceeded')
        const immediate = final.parent.clone().union(final.present)
        check(neverLazy.intersect(eligible).subtract(immediate).isEmpty, 'never-lazy page is a hole')

        const frozenContent = (p: number) => workload.peek(p) as number
        const memory = destination.finish(areas, pagemapEntries(final), frozenContent)
        for (const [p, value] of memory)
          check(value === frozenContent(p), `page ${p}: ${value}, not ${frozenContent(p)}`)
        for (const key of Object.keys(seen) as Array<keyof typeof seen>) seen[key] += final.counts[key]
      }),
      fcOptions(6000),
    )
    // A generator that never gets anywhere would pass every property.
    if (process.env.FC_PATH !== undefined) return
    for (const [kind, count] of Object.entries(seen)) {
      t.ok(count > runs / 2, `${count} ${kind} pages in ${runs} histories`)
    }
  },
)
