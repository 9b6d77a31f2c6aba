import fc from 'fast-check'
import t from 'tap'
import { findGap } from '../src/remote/scratch.js'

const margin = 16

t.test('a gap lies above 4 GiB and keeps away from its neighbours', async (t) => {
  t.equal(findGap([], 64), 0x10_0000)
  t.equal(findGap([{ start: 0x400, nrPages: 100 }], 64), 0x10_0000, 'what lies below does not matter')
  const area = { start: 0x10_0000 + 64 + margin, nrPages: 10 }
  t.equal(findGap([area], 64), 0x10_0000, 'fits exactly')
  t.equal(findGap([{ ...area, start: area.start - 1 }], 64), area.start - 1 + 10 + margin, 'one page too few')
})

t.test('a gap in overlapping maps, for any map', async (t) => {
  const area = fc.record({
    start: fc.integer({ min: 0xf_ff00, max: 0x10_2000 }),
    nrPages: fc.integer({ min: 1, max: 600 }),
  })
  fc.assert(
    fc.property(fc.array(area, { maxLength: 20 }), fc.integer({ min: 1, max: 300 }), (maps, nrPages) => {
      const gap = findGap(maps, nrPages)
      const free = (at: number) =>
        at >= 0x10_0000 &&
        maps.every((each) => each.start + each.nrPages + margin <= at || at + nrPages + margin <= each.start)
      // The first possible place is the start or lies right behind some area.
      const first = [0x10_0000, ...maps.map((each) => each.start + each.nrPages + margin)].filter(free)
      return gap === Math.min(...first)
    }),
    { numRuns: 500 },
  )
  t.pass('for all of them')
})

t.test('no room', async (t) => {
  t.throws(() => findGap([{ start: 0x10_0000, nrPages: 0x7_ffff_ffff - 0x10_0000 }], 1), { code: 'REFUSED' })
})
