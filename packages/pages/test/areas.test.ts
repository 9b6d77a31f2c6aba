import fc from 'fast-check'
import t from 'tap'
import {
  type Area,
  type AreaChange,
  AreaMap,
  diffAreas,
  isPrivateAnon,
  maxAreas,
  requireAreaCount,
  sliceArea,
} from '../src/areas.js'
import { fcOptions } from './fc.js'

function area(start: number, nrPages: number, more: Partial<Area> = {}): Area {
  return {
    start,
    nrPages,
    kind: 'anon',
    prot: 3,
    flags: 0x22,
    madv: 0,
    growsDown: false,
    lazyEligible: true,
    offset: 0n,
    ...more,
  }
}
const file = (start: number, nrPages: number, filePage: number, more: Partial<Area> = {}) =>
  area(start, nrPages, {
    kind: 'file-private',
    path: '/lib/x.so',
    offset: BigInt(filePage) * 4096n,
    lazyEligible: false,
    ...more,
  })
const diff = (from: Area[], to: Area[]) => diffAreas(new AreaMap(from), new AreaMap(to))

t.test('find, sorted, overlaps refused', async (t) => {
  const map = new AreaMap([area(20, 5), area(10, 5)])
  t.equal(map.find(14)?.start, 10)
  t.equal(map.find(15), undefined)
  t.equal(map.find(24)?.start, 20)
  t.equal(map.find(9), undefined)
  t.equal(map.nrPages, 10)
  t.throws(() => new AreaMap([area(10, 5), area(14, 1)]), RangeError)
  t.throws(() => new AreaMap([area(10, 0)]), RangeError)
})

t.test('equal maps need nothing; merging, splitting and relabelling change nothing', async (t) => {
  t.same(diff([area(10, 10)], [area(10, 10)]), [])
  t.same(diff([area(10, 10)], [area(10, 4), area(14, 6)]), [])
  t.same(diff([area(10, 4), area(14, 6, { kind: 'heap' })], [area(10, 10, { kind: 'heap' })]), [])
  t.same(diff([file(10, 10, 5)], [file(10, 4, 5), file(14, 6, 9)]), [])
})

t.test('growth and shrinking touch the difference only', async (t) => {
  t.match(diff([area(10, 4)], [area(10, 6)]), [
    { op: 'map', first: 14, nr: 2, area: { start: 14, nrPages: 2 } },
  ])
  t.same(diff([area(10, 6)], [area(12, 2)]), [
    { op: 'unmap', first: 10, nr: 2 },
    { op: 'unmap', first: 14, nr: 2 },
  ])
  const stack = { kind: 'stack', growsDown: true } as const
  t.match(diff([area(100, 4, stack)], [area(96, 8, stack)]), [{ op: 'map', first: 96, nr: 4 }])
  t.match(diff([file(10, 4, 0)], [file(10, 6, 0)]), [
    { op: 'map', first: 14, nr: 2, area: { offset: 4n * 4096n } },
  ])
})

t.test('a changed identity is unmapped and mapped, once', async (t) => {
  t.match(diff([file(10, 4, 0)], [file(10, 4, 1)]), [
    { op: 'unmap', first: 10, nr: 4 },
    { op: 'map', first: 10, nr: 4 },
  ])
  t.match(diff([file(10, 4, 0)], [area(8, 8)]), [
    { op: 'unmap', first: 10, nr: 4 },
    { op: 'map', first: 8, nr: 8 },
  ])
  t.match(diff([area(10, 4)], [area(10, 4, { growsDown: true })]), [{ op: 'unmap' }, { op: 'map' }])
  t.match(diff([area(10, 4)], [area(10, 4, { flags: 0x4022 })]), [{ op: 'unmap' }, { op: 'map' }])
  const deleted = (path: string) => file(10, 4, 0, { path, backingId: '8:1:77' })
  t.same(diff([deleted('/a')], [deleted('/b')]), [], 'a renamed file is still the same mapping')
  t.match(diff([deleted('/a')], [file(10, 4, 0, { path: '/a', backingId: '8:1:78' })]), [
    { op: 'unmap' },
    { op: 'map' },
  ])
})

t.test('protection, advice and eligibility change in place, and locks make no operation', async (t) => {
  t.same(diff([area(10, 10)], [area(10, 4), area(14, 6, { prot: 1 })]), [
    { op: 'protect', first: 14, nr: 6, prot: 1 },
  ])
  t.same(diff([area(10, 4)], [area(10, 4, { flags: 0x2022, lazyEligible: false, madv: 1 << 15 })]), [
    { op: 'advise', first: 10, nr: 4, from: 0, to: 1 << 15 },
    { op: 'register', first: 10, nr: 4, on: false },
  ])
})

/** What a page is mapped as; two equal strings mean the same page of the same mapping. */
function identity(a: Area, page: number): string {
  const { kind, offset } = sliceArea(a, page, 1)
  const where = isPrivateAnon(a) ? 'anon' : `${kind} ${a.path} ${offset}`
  return `${where} ${a.flags & ~0x2000} ${a.growsDown}`
}
/** Without MAP_LOCKED, which is set after the last round. */
const attributes = (a: Area) => `${a.prot} ${a.flags & ~0x2000} ${a.madv} ${a.lazyEligible}`

const anyMap = fc
  .array(
    fc.record({
      gap: fc.nat(3),
      nr: fc.integer({ min: 1, max: 6 }),
      kind: fc.constantFrom('anon', 'heap', 'stack', 'file-private', 'shared-anon', 'vdso'),
      prot: fc.constantFrom(0, 1, 3),
      flags: fc.constantFrom(0x22, 0x2022, 0x4022),
      madv: fc.constantFrom(0, 1 << 14),
      lazyEligible: fc.boolean(),
      aligned: fc.boolean(),
      path: fc.constantFrom('/a', '/b'),
    }),
    { maxLength: 10 },
  )
  .map((list) => {
    let start = 5
    return new AreaMap(
      list.map(({ gap, nr, aligned, kind, path, ...rest }) => {
        start += gap
        // "Aligned" offsets follow the address, so that shifted pieces of two maps are often the same mapping.
        const made = area(start, nr, {
          ...rest,
          kind: kind as Area['kind'],
          growsDown: kind === 'stack',
          path: isPrivateAnon({ kind } as Area) ? undefined : path,
          offset: isPrivateAnon({ kind } as Area) ? 0n : aligned ? BigInt(start) * 4096n : 0n,
        })
        start += nr
        return made
      }),
    )
  })

t.test('a memory map of a peer has a limit', async (t) => {
  t.doesNotThrow(() => requireAreaCount(maxAreas))
  t.throws(() => requireAreaCount(maxAreas + 1), { code: 'REFUSED', message: /has 1048577 areas/ })
})

t.test('applied to a model, a plan gives the new map, minimally, and keeps what stays', async () => {
  fc.assert(
    fc.property(anyMap, anyMap, (from, to) => {
      const before = new Map<number, { area: Area; born: string }>()
      for (const a of from.areas) {
        for (let p = a.start; p < a.start + a.nrPages; p++) before.set(p, { area: a, born: 'before' })
      }
      const pages = new Map(before)
      const phases: AreaChange['op'][] = ['unmap', 'map', 'protect', 'advise', 'register']
      let phase = 0
      for (const change of diffAreas(from, to)) {
        const at = phases.indexOf(change.op)
        if (at < phase) throw new Error(`${change.op} too late`)
        phase = at
        for (let p = change.first; p < change.first + change.nr; p++) {
          const page = pages.get(p)
          if (change.op === 'map') {
            if (page !== undefined) throw new Error(`page ${p} is mapped over`)
            if (change.area.start !== change.first || change.area.nrPages !== change.nr)
              throw new Error('the piece to map is not exact')
            pages.set(p, { area: change.area, born: 'plan' })
            continue
          }
          if (page === undefined) throw new Error(`${change.op} of unmapped page ${p}`)
          const a = page.area
          if (change.op === 'unmap') pages.delete(p)
          else if (change.op === 'protect') pages.set(p, { ...page, area: { ...a, prot: change.prot } })
          else if (change.op === 'advise') {
            if (a.madv !== change.from) throw new Error('advice differs')
            pages.set(p, { ...page, area: { ...a, madv: change.to } })
          } else pages.set(p, { ...page, area: { ...a, lazyEligible: change.on } })
        }
      }
      for (let p = 0; p < 120; p++) {
        const wanted = to.find(p)
        const got = pages.get(p)
        const old = before.get(p)
        if (wanted === undefined || got === undefined) {
          if (wanted !== undefined || got !== undefined) throw new Error(`page ${p} differs`)
          continue
        }
        if (identity(wanted, p) !== identity(got.area, p)) throw new Error(`identity of page ${p} differs`)
        if (attributes(wanted) !== attributes(got.area)) throw new Error(`attributes of page ${p} differ`)
        const stays = old !== undefined && identity(old.area, p) === identity(wanted, p)
        if (stays !== (got.born === 'before')) throw new Error(`page ${p} ${stays ? 'destroyed' : 'kept'}`)
      }
    }),
    fcOptions(3000),
  )
})
