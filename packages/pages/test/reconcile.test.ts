import t from 'tap'
import { type Area, AreaMap } from '../src/areas.js'
import { PageSet } from '../src/page-set.js'
import { checkInstalled, reconcile } from '../src/reconcile.js'

const area = (start: number, kind: Area['kind']): Area => ({
  start,
  nrPages: 10,
  kind,
  prot: 3,
  flags: 0x22,
  madv: 0,
  growsDown: false,
  lazyEligible: kind === 'anon',
  offset: 0n,
})
const areas = new AreaMap([area(0, 'anon'), area(10, 'file-private'), area(20, 'shared-anon')])
const final = {
  parent: PageSet.of([0, 3], [10, 1]),
  lazy: PageSet.of([3, 2]),
  present: PageSet.of([5, 1], [20, 2]),
}

t.test(
  'discards what is lazy or in no entry, remembered or not; keeps what is overwritten anyway',
  async (t) => {
    const { discard, missing } = reconcile(PageSet.of([0, 13], [20, 5]), final, areas)
    t.same(
      [...discard.runs()],
      [
        [3, 2],
        [6, 4],
        [11, 2],
      ],
    )
    t.ok(missing.isEmpty)
    t.same([...reconcile(PageSet.of([1, 20]), final, areas).missing.runs()], [[0, 1]])
  },
)

t.test('the check before the resume sees absent and stale pages', async (t) => {
  const good = PageSet.of([0, 3], [5, 1], [10, 1], [20, 2])
  const verdict = (there: PageSet) => {
    const { missing, unexpected } = checkInstalled(there, final, areas)
    return [[...missing.runs()], [...unexpected.runs()]]
  }
  t.same(verdict(good), [[], []])
  t.same(verdict(good.clone().union(PageSet.of([4, 1], [15, 1]))), [[], [[4, 1]]])
  t.same(verdict(PageSet.of([0, 3], [10, 1], [20, 2])), [[[5, 1]], []])
})
