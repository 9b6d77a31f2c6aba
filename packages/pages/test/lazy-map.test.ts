import { runTableOf } from '@pageferry/base'
import fc from 'fast-check'
import t from 'tap'
import { type LazyEvent, LazyMap } from '../src/lazy-map.js'
import { PageSet } from '../src/page-set.js'
import { fcOptions } from './fc.js'

t.test('the 2016 scenario: ten parent pages, six lazy ones', async (t) => {
  const map = new LazyMap(PageSet.of([0x1a, 6]))
  t.equal(map.pendingCount, 6)
  t.equal(map.lookup(0x10), 'zero', 'would only fault if it were not installed')
  t.equal(map.lookup(0x1a), 0x1a)
  map.installed(runTableOf([0x1a, 6]))
  t.equal(map.lookup(0x1a), 'zero')
  t.ok(map.isDrained)
})

t.test('discarded and unmapped pages are never lazy again', async (t) => {
  const map = new LazyMap(PageSet.of([10, 10]))
  map.remove(12, 2)
  map.unmap(18, 5)
  t.equal(map.lookup(12), 'zero')
  t.equal(map.lookup(18), 'zero')
  t.same(map.sourceRunsPendingFor(runTableOf([10, 10])), [
    [10, 10, 2],
    [14, 14, 4],
  ])
})

t.test('moved pages keep their source, and a fork goes its own way', async (t) => {
  const map = new LazyMap(PageSet.of([10, 10]))
  map.remap(10, 100, 4)
  t.equal(map.lookup(101), 11)
  t.equal(map.lookup(11), 'zero', 'the old place is empty')
  t.same(map.sourceRunsPendingFor(runTableOf([11, 5])), [
    [101, 11, 3],
    [14, 14, 2],
  ])
  const child = map.fork()
  child.remap(100, 10, 4)
  t.equal(child.lookup(13), 13, 'back home')
  t.equal(map.lookup(103), 13)
  map.clear()
  t.ok(map.isDrained)
  t.equal(child.pendingCount, 10)
  t.same([...child.pendingSourcePages().runs()], [[10, 10]])
})

t.test(
  'a page left behind and moved by itself is not confused with a neighbour that moved earlier',
  async (t) => {
    const map = new LazyMap(PageSet.of([10, 3]))
    map.remap(11, 50, 1)
    map.remap(10, 60, 3)
    t.same(map.sourceRunsPendingFor(runTableOf([10, 3])), [
      [60, 10, 1],
      [50, 11, 1],
      [62, 12, 1],
    ])
  },
)

// A whole world: what an unmigrated process would see beside what the migrated one sees.

const size = 48
const contentOf = (sourcePage: number) => 1000 + sourcePage

interface Process {
  /** Mapped pages and their true contents. */
  truth: Map<number, number>
  installed: Map<number, number>
  /** The naive LazyMap: current page -> source page. */
  naive: Map<number, number>
  lazy: LazyMap
  events: LazyEvent[]
}

const page = fc.nat(size - 1)
const nr = fc.integer({ min: 1, max: 10 })
const command = fc.oneof(
  { weight: 3, arbitrary: fc.record({ op: fc.constant('read' as const), page }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('write' as const), page, value: fc.nat(99) }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('push' as const), page, nr }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('madvise' as const), page, nr }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('unmap' as const), page, nr }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('map' as const), page, nr }) },
  {
    weight: 6,
    arbitrary: fc.record({
      op: fc.constant('remap' as const),
      page,
      to: page,
      nr,
      keepsOld: fc.boolean(),
      saysUnmap: fc.boolean(),
    }),
  },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('fork' as const) }) },
)
const history = fc.record({
  kinds: fc.array(fc.constantFrom('lazy', 'lazy', 'lazy', 'present', 'hole', 'unmapped'), {
    minLength: size,
    maxLength: size,
  }),
  steps: fc.array(fc.tuple(fc.nat(2), command), { maxLength: 40 }),
})

function check(condition: boolean, what: string): void {
  if (!condition) throw new Error(what)
}

t.test('random lives: every process sees what it would have seen without the migration', async () => {
  fc.assert(
    fc.property(history, ({ kinds, steps }) => {
      const first: Process = {
        truth: new Map(),
        installed: new Map(),
        naive: new Map(),
        lazy: new LazyMap(new PageSet()),
        events: [],
      }
      const pending = new PageSet()
      kinds.forEach((kind, p) => {
        if (kind === 'unmapped') return
        first.truth.set(p, kind === 'hole' ? 0 : contentOf(p))
        if (kind === 'present') first.installed.set(p, contentOf(p))
        if (kind !== 'lazy') return
        pending.addRange(p, 1)
        first.naive.set(p, p)
      })
      const initial = pending.clone()
      first.lazy = new LazyMap(pending)
      const processes = [first]

      const tell = (process: Process, event: LazyEvent) => {
        process.lazy.apply(event)
        process.events.push(event)
      }
      const touch = (process: Process, p: number) => {
        if (process.installed.has(p)) return
        const source = process.lazy.lookup(p)
        process.installed.set(p, source === 'zero' ? 0 : contentOf(source))
        if (source !== 'zero') tell(process, { type: 'installed', first: p, nr: 1 })
        process.naive.delete(p)
      }
      const push = (from: number, length: number) => {
        for (const process of processes) {
          const due = [...process.naive].filter(([, s]) => s >= from && s < from + length).length
          let installed = 0
          for (const [current, source, n] of process.lazy.sourceRunsPendingFor(runTableOf([from, length]))) {
            for (let i = 0; i < n; i++) {
              check(process.truth.has(current + i), `push into unmapped page ${current + i}`)
              check(!process.installed.has(current + i), `push onto page ${current + i}, which is there`)
              process.installed.set(current + i, contentOf(source + i))
              process.naive.delete(current + i)
              installed++
            }
            tell(process, { type: 'installed', first: current, nr: n })
          }
          check(installed === due, `${installed} of ${due} pushed pages installed`)
        }
      }
      const forget = (process: Process, from: number, length: number) => {
        for (let p = from; p < from + length; p++) {
          process.installed.delete(p)
          process.naive.delete(p)
        }
      }

      for (const [index, step] of steps) {
        const process = processes[index % processes.length]
        const { truth } = process
        if (step.op === 'read' || step.op === 'write') {
          if (!truth.has(step.page)) continue
          touch(process, step.page)
          if (step.op === 'write') {
            truth.set(step.page, step.value)
            process.installed.set(step.page, step.value)
          }
        } else if (step.op === 'push') push(step.page, step.nr)
        else if (step.op === 'fork') {
          if (processes.length === 3) continue
          processes.push({
            truth: new Map(truth),
            installed: new Map(process.installed),
            naive: new Map(process.naive),
            lazy: process.lazy.fork(),
            events: [...process.events],
          })
        } else if (step.op === 'remap') {
          const { page: from, to, nr: length } = step
          const mapped = Array.from({ length }, (_, i) => from + i).every((p) => truth.has(p))
          if (!mapped || Math.abs(from - to) < length) continue
          if (step.saysUnmap) tell(process, { type: 'unmap', first: to, nr: length })
          forget(process, to, length)
          for (let i = 0; i < length; i++) {
            truth.set(to + i, truth.get(from + i) as number)
            for (const map of [process.installed, process.naive]) {
              const value = map.get(from + i)
              if (value !== undefined) map.set(to + i, value)
            }
            if (step.keepsOld) truth.set(from + i, 0)
            else truth.delete(from + i)
          }
          forget(process, from, length)
          tell(process, { type: 'remap', from, to, nr: length })
          if (step.saysUnmap) tell(process, { type: 'unmap', first: from, nr: length })
        } else {
          const { page: from, nr: length } = step
          forget(process, from, length)
          tell(process, { type: step.op === 'madvise' ? 'remove' : 'unmap', first: from, nr: length })
          for (let p = from; p < from + length; p++) {
            if (step.op === 'unmap') truth.delete(p)
            else if (step.op === 'map' || truth.has(p)) truth.set(p, 0)
          }
        }
        for (let p = 0; p < size + 10; p++) {
          check(
            process.lazy.lookup(p) === (process.naive.get(p) ?? 'zero'),
            `lookup of page ${p} after ${step.op}`,
          )
        }
        const sources = new PageSet()
        for (const source of process.naive.values()) sources.addRange(source, 1)
        check(process.lazy.pendingSourcePages().equals(sources), `pending source pages after ${step.op}`)
      }

      for (const process of processes) {
        const replayed = new LazyMap(initial.clone())
        for (const event of process.events) replayed.apply(event)
        check(replayed.pendingPages().equals(process.lazy.pendingPages()), 'replay: pending pages')
        check(replayed.pendingSourcePages().equals(process.lazy.pendingSourcePages()), 'replay: sources')
      }
      push(0, size / 2)
      push(size / 2, size / 2)
      for (const process of processes) {
        check(process.lazy.isDrained, 'not drained')
        for (const [p, value] of process.truth) {
          touch(process, p)
          check(process.installed.get(p) === value, `page ${p}: ${process.installed.get(p)}, not ${value}`)
        }
      }
    }),
    fcOptions(4000),
  )
})
