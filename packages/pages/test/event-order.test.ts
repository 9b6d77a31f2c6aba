import fc from 'fast-check'
import t from 'tap'
import { type MapEvent, trueOrder } from '../src/event-order.js'
import { LazyMap } from '../src/lazy-map.js'
import { PageSet } from '../src/page-set.js'
import { fcOptions } from './fc.js'

const remap = (from: number, to: number, nr: number): MapEvent => ({ type: 'remap', from, to, nr })
const unmap = (first: number, nr: number): MapEvent => ({ type: 'unmap', first, nr })

type Range = readonly [first: number, nr: number]

const order = (events: MapEvent[], before: Range[], now: Range[], nrInherited = 0) => {
  const [was, is] = [PageSet.of(...before), PageSet.of(...now)]
  const registrations = {
    before: (first: number, end: number) => new LazyMap(was).firstRegistered(first, end),
    now: (page: number) => is.has(page),
  }
  return trueOrder(events, registrations, nrInherited)
}

t.test('an UNMAP of what lay there before, read after the arrival', async (t) => {
  const events = [remap(0, 20, 4), unmap(18, 4), unmap(0, 4)]
  const before: Range[] = [
    [0, 4],
    [18, 4],
  ]
  t.same(order(events, before, [[20, 4]]), [1, 0, 2])
  t.same(order(events, [[0, 4]], [[20, 4]]), [1, 0, 2], 'of what had grown in place, without any event')
})

t.test('an UNMAP of what has arrived', async (t) => {
  const events = [remap(0, 20, 4), unmap(0, 4), unmap(20, 2)]
  t.same(order(events, [[0, 4]], [[22, 2]]), [0, 1, 2])
  t.same(order(events, [[0, 4]], [[20, 4]]), [0, 1, 2], 'something has grown in its place')
})

t.test('a REMAP of what lay there before, read after the arrival', async (t) => {
  const events = [remap(0, 20, 4), remap(20, 40, 4), unmap(20, 4), unmap(0, 4)]
  t.same(
    order(
      events,
      [
        [0, 4],
        [20, 4],
      ],
      [
        [20, 4],
        [40, 4],
      ],
    ),
    [1, 2, 0, 3],
  )
  t.same(
    order(
      events,
      [[0, 4]],
      [
        [20, 4],
        [40, 4],
      ],
    ),
    [1, 2, 0, 3],
    'nobody else can have moved it before its own UNMAP',
  )
})

t.test('one thread alone stays in its order', async (t) => {
  const events = [remap(0, 20, 4), unmap(0, 4), remap(20, 40, 4), unmap(20, 4)]
  t.same(order(events, [[0, 4]], [[40, 4]]), [0, 1, 2, 3], 'moved on')
  t.same(
    order(
      events,
      [[0, 4]],
      [
        [20, 1],
        [40, 4],
      ],
    ),
    [0, 1, 2, 3],
    'and something grew there',
  )
  const again = [...events, unmap(20, 4)]
  t.same(order(again, [[0, 4]], [[40, 4]]), [0, 1, 2, 3, 4], 'and went away again')
})

t.test(
  'moved on by a mremap that keeps the old place, while the UNMAP of what lay there is late',
  async (t) => {
    const events = [remap(0, 20, 4), unmap(0, 4), remap(20, 40, 4), unmap(20, 4)]
    const [arrival, closing, , late] = events as [MapEvent, MapEvent, MapEvent, MapEvent]
    const read = [arrival, closing, remap(20, 40, 2), late]
    t.same(
      order(
        read,
        [
          [0, 4],
          [20, 4],
        ],
        [
          [20, 4],
          [40, 2],
        ],
      ),
      [3, 0, 1, 2],
    )
  },
)

t.test('an UNMAP over a hole and more', async (t) => {
  const events = [unmap(20, 4), remap(0, 20, 4), unmap(16, 8), unmap(0, 4)]
  const found = order(
    events,
    [
      [0, 4],
      [16, 8],
    ],
    [[20, 4]],
  )
  t.ok(found.indexOf(2) < found.indexOf(1))
})

t.test('moved on before the UNMAP of a move away was read', async (t) => {
  const events = [
    remap(20, 40, 4),
    remap(0, 20, 4),
    unmap(0, 4),
    remap(20, 60, 4),
    unmap(20, 4),
    unmap(20, 4),
  ]
  const found = order(
    events,
    [
      [0, 4],
      [20, 4],
    ],
    [
      [40, 4],
      [60, 4],
    ],
  )
  const lazy = new LazyMap(PageSet.of([0, 4], [20, 4]))
  for (const index of found) lazy.apply(events[index])
  t.equal(lazy.lookup(41), 21)
  t.equal(lazy.lookup(61), 1)
  t.equal(lazy.lookup(21), 'zero')
})

t.test('what the parent says after the fork is missing', async (t) => {
  const events = [remap(0, 20, 4), unmap(0, 4), remap(20, 40, 4)]
  t.same(
    order(
      events,
      [[0, 4]],
      [
        [20, 4],
        [40, 4],
      ],
      3,
    ),
    [0, 1, 2],
  )
  t.same(
    order(
      events,
      [
        [0, 4],
        [20, 4],
      ],
      [
        [20, 4],
        [40, 4],
      ],
      3,
    ),
    [2, 0, 1],
    'it will unmap 20',
  )
  t.same(
    order(
      events,
      [
        [0, 4],
        [20, 4],
      ],
      [
        [20, 4],
        [40, 4],
      ],
    ),
    [0, 1, 2],
    'it was moved and stays',
  )
})

// Threads whose changes happen at once and whose events come when they come.

const size = 40
const nrThreads = 5

interface Thread {
  /** Places that are empty since their memory was moved away are left to munmap. */
  owned: Array<{ first: number; nr: number; isLeft?: true }>
  /** Events of the call that is under way; the first is the next to be queued or read. */
  events: MapEvent[]
  isQueued: boolean
  atReturn: () => void
  call: string
}

const step = fc.record({
  thread: fc.nat(nrThreads - 1),
  act: fc.constantFrom('call', 'call', 'call', 'queue', 'read', 'read'),
  call: fc.constantFrom('munmap', 'move', 'move', 'leave', 'madvise', 'grow'),
  which: fc.nat(7),
  at: fc.nat(size - 1),
  /** Move to where another thread is just leaving, or beside it. */
  close: fc.option(fc.integer({ min: -2, max: 2 })),
  install: fc.boolean(),
})

t.test('whatever the order of reading, every page that is mapped has what belongs there', async (t) => {
  let nrMixed = 0
  fc.assert(
    fc.property(fc.array(step, { minLength: 40, maxLength: 200 }), (steps) => {
      /** Registered pages, with the source's page that is still to come. */
      const truth = new Map<number, number | 'zero'>()
      const pending = new PageSet()
      const threads = Array.from({ length: nrThreads }, (_, i): Thread => {
        const owned = [0, 1].map((part) => ({ first: i * 6 + part * 3, nr: 3 }))
        for (let p = i * 6; p < i * 6 + 6; p++) {
          truth.set(p, p)
          pending.addRange(p, 1)
        }
        return { owned, events: [], isQueued: false, atReturn: () => {}, call: '' }
      })
      const lazy = new LazyMap(pending)
      const queue: Thread[] = []
      let read: MapEvent[] = []
      const trace: string[] = []

      const overlaps = (a: { first: number; nr: number }, first: number, nr: number) =>
        a.first < first + nr && first < a.first + a.nr
      /** What the module says it cannot know. */
      const isAmbiguous = (first: number, nr: number) =>
        threads.some(
          ({ events, call }) =>
            events.some((event) => event.type === 'unmap' && overlaps(event, first, nr)) &&
            !(call === 'move' && events.length === 1),
        )
      const isMoveUnread = (first: number, nr: number) =>
        threads.some(({ events: [next] }) =>
          next?.type === 'remap' ? overlaps({ first: next.from, nr: next.nr }, first, nr) : false,
        )
      const rangesOf = (e: MapEvent) =>
        e.type === 'remap' ? [e.from, e.to].map((first) => ({ first, nr: e.nr })) : [e]
      /** What grows where something is under way may be taken for what was there. */
      const isTouched = (page: number) =>
        [read, ...threads.map(({ events }) => events)].some((events) =>
          events.flatMap(rangesOf).some((range) => overlaps(range, page, 1)),
        )
      const leaving = () =>
        threads.flatMap(({ events }) => events.flatMap((e) => (e.type === 'remap' ? e.from : e.first)))
      const begin = (thread: Thread, { call, which, at: anywhere, close }: (typeof steps)[number]) => {
        const left = leaving()
        const at = close === null || left.length === 0 ? anywhere : left[which % left.length] + close
        const area = thread.owned[which % Math.max(1, thread.owned.length)]
        if (area === undefined) return
        const { first, nr } = area
        const give = () => thread.owned.splice(thread.owned.indexOf(area), 1)
        if (call === 'munmap') {
          if (isMoveUnread(first, nr)) return
          give()
          for (let p = first; p < first + nr; p++) truth.delete(p)
          thread.events = [unmap(first, nr)]
          thread.atReturn = () => {}
        } else if (call === 'grow') {
          const end = first + nr
          if (area.isLeft || end >= size || truth.has(end) || isTouched(end)) return
          truth.set(end, 'zero')
          area.nr++
        } else if (call === 'madvise') {
          thread.events = [{ type: 'remove', first, nr }]
          thread.atReturn = () => {
            for (let p = first; p < first + nr; p++) truth.set(p, 'zero')
          }
        } else {
          const isFree = Array.from({ length: nr }, (_, i) => at + i).every(
            (p) => p >= 0 && p < size && !truth.has(p),
          )
          if (!isFree || area.isLeft || isAmbiguous(first, nr)) return
          if (call === 'move') give()
          else area.isLeft = true
          for (let i = 0; i < nr; i++) {
            truth.set(at + i, truth.get(first + i) as number)
            if (call === 'move') truth.delete(first + i)
            else truth.set(first + i, 'zero')
          }
          thread.events = [remap(first, at, nr), ...(call === 'move' ? [unmap(first, nr)] : [])]
          thread.atReturn = () => void thread.owned.push({ first: at, nr })
        }
        thread.call = call
        trace.push(
          `${threads.indexOf(thread)} ${call} ${first}+${nr} ${thread.events.map((e) => JSON.stringify(e))}`,
        )
      }
      const readOne = () => {
        const thread = queue.shift()
        if (thread === undefined) return
        read.push(thread.events.shift() as MapEvent)
        trace.push(`${threads.indexOf(thread)} read ${JSON.stringify(read.at(-1))}`)
        thread.isQueued = false
        if (thread.events.length === 0) thread.atReturn()
      }
      const settle = () => {
        const order = trueOrder(read, {
          before: (first, end) => lazy.firstRegistered(first, end),
          now: (page) => truth.has(page),
        })
        if (order.some((index, i) => index !== i)) nrMixed++
        for (const index of order) lazy.apply(read[index])
        trace.push(`settled ${order}`)
        read = []
        for (let p = 0; p < size; p++) {
          const wanted = truth.get(p) ?? 'zero'
          if (lazy.lookup(p) !== wanted)
            throw new Error(`page ${p}: ${lazy.lookup(p)}, not ${wanted}: ${trace.join('; ')}`)
        }
      }
      const tellQueue = (thread: Thread) => {
        if (thread.events.length === 0 || thread.isQueued) return
        thread.isQueued = true
        queue.push(thread)
      }
      for (const each of steps) {
        const thread = threads[each.thread]
        if (each.act === 'read') readOne()
        else if (each.act === 'queue') tellQueue(thread)
        else if (thread.events.length === 0) begin(thread, each)
        if (threads.some(({ events }) => events.length > 0)) continue
        settle()
        if (each.install && truth.has(each.at)) {
          truth.set(each.at, 'zero')
          lazy.apply({ type: 'installed', first: each.at, nr: 1 })
        }
      }
      while (threads.some(({ events }) => events.length > 0)) {
        threads.forEach(tellQueue)
        readOne()
      }
      settle()
    }),
    fcOptions(4000),
  )
  t.ok(nrMixed > 100, `${nrMixed} times events had come in another order`)
})
