import type { LazyEvent } from './lazy-map.js'

/**
 * The order in which the changes of an address space happened, from the order in which their events were read.
 *
 * A thread queues its event only after it has let go of the memory map. So A unmaps X, the mremap of B is given X, and
 * B's event may be read before A's. And the UNMAP of a moved range always comes late: it is queued after REMAP was read.
 *
 *   A   munmap(X) ........ preempted ........... UNMAP X
 *   B             mremap(Z, gets X)  REMAP Z X ............. UNMAP Z
 *   read                             REMAP Z X   UNMAP X     UNMAP Z       taken as it comes, B's pages are lost
 *
 * What helps is that everything can wait: as long as one change is between its doing and the reading of its event, the
 * kernel lets nobody install (UFFDIO_COPY answers EAGAIN). So events are collected until the address space is quiet;
 * then all of them are there. They stay as they were read, unless that is impossible:
 *
 * - Memory that arrives at X by mremap found nothing there. Whoever had X before has said UNMAP for it, once, or will.
 *   So what lies at X are *generations*, each begun by a REMAP, and ended by the next UNMAP that no older one lacks.
 * - mremap says where to when its event was read. So whatever is done to the new memory is read after that, and arrivals
 *   at X are read in their order. Only what concerns an older generation can come late.
 * - Nobody knows the new memory before the mremap returns, which is after its UNMAP(from) was read, if it says one.
 * - REMOVE is sent before the change and waited for, so it is about the generation that arrived last.
 * - Memory may come to X without any event: what grows in place, or grows while it moves. Its UNMAP is told from that of
 *   what arrived then only where it must be.
 *
 * Left open is which of two generations a REMAP away from X moves, while the UNMAPs of both are still to come: it is
 * taken for the older one's, whose UNMAP is overdue. And what grows where others have come and gone since `before` may be
 * taken for one of them.
 */
export type MapEvent = Exclude<LazyEvent, { type: 'installed' }>

interface Touch {
  index: number
  kind: 'arrive' | 'leave' | 'unmap' | 'remove'
  first: number
  end: number
}

/** Memory at one place, from its arrival to its end. */
interface Generation {
  events: number[]
  /** Of what arrived together. */
  first: number
  /** Its UNMAP was not read. */
  isAlive: boolean
  hasMoved: boolean
  /** Before the event of that number nobody but the thread that moved it here can have done anything to it. */
  knownFrom: number
}

/** What else is known of the address space. */
export interface Registrations {
  /** The first of pages first .. end-1 that was registered before all of the events, as far as events tell; -1: none. */
  before(first: number, end: number): number
  /** Whether a page is registered with the userfaultfd, when no change is under way. Seldom asked. */
  now(page: number): boolean
}

/**
 * @param nrInherited so many of the first events are a parent's: what it said after the fork is missing
 * @returns indices of `events` in the order of their changes
 */
export function trueOrder(
  events: readonly MapEvent[],
  registrations: Registrations,
  nrInherited = 0,
): number[] {
  const closings = closingsOf(events, nrInherited)
  const after: number[][] = events.map(() => [])
  let isMixed = false
  for (const place of places(events.flatMap(touchesOf))) {
    const ordered = byGeneration(place, closings, registrations, nrInherited > 0)
    for (let i = 1; i < ordered.length; i++) {
      after[ordered[i - 1]].push(ordered[i])
      isMixed ||= ordered[i - 1] > ordered[i]
    }
  }
  return isMixed ? sorted(after) : events.map((_, index) => index)
}

function touchesOf(event: MapEvent, index: number): Touch[] {
  if (event.type !== 'remap')
    return [{ index, kind: event.type, first: event.first, end: event.first + event.nr }]
  const { from, to, nr } = event
  return [
    { index, kind: 'leave', first: from, end: from + nr },
    { index, kind: 'arrive', first: to, end: to + nr },
  ]
}

/**
 * For each REMAP the UNMAP of the place that it left; without one (MREMAP_DONTUNMAP) there is no entry. One that only the
 * parent has heard comes after everything.
 */
function closingsOf(events: readonly MapEvent[], nrInherited: number): Map<number, number> {
  const closings = new Map<number, number>()
  const open = new Map<string, number[]>()
  for (const [index, event] of events.entries()) {
    if (event.type === 'remap') {
      const key = `${event.from} ${event.nr}`
      const others = open.get(key)
      if (others === undefined) open.set(key, [index])
      else others.push(index)
    } else if (event.type === 'unmap') {
      const remap = open.get(`${event.first} ${event.nr}`)?.shift()
      if (remap !== undefined) closings.set(remap, index)
    }
  }
  for (const index of [...open.values()].flat()) if (index < nrInherited) closings.set(index, events.length)
  return closings
}

interface Place {
  first: number
  end: number
  /** In the order of reading. */
  touches: Touch[]
}

/** The stretches where several things happened, if memory arrived anywhere. */
function places(touches: readonly Touch[]): Place[] {
  const found: Place[] = []
  if (!touches.some(({ kind }) => kind === 'arrive')) return found
  const borders = [...new Set(touches.flatMap(({ first, end }) => [first, end]))].sort((a, b) => a - b)
  const begins = touches.slice().sort((a, b) => a.first - b.first)
  let open: Touch[] = []
  let next = 0
  for (const [i, first] of borders.entries()) {
    open = open.filter(({ end }) => end > first)
    for (; next < begins.length && begins[next].first === first; next++) open.push(begins[next])
    if (open.length > 1)
      found.push({ first, end: borders[i + 1], touches: open.slice().sort((a, b) => a.index - b.index) })
  }
  return found
}

/** The events of one place, oldest generation first, and as they were read within each. */
function byGeneration(
  { first: page, end, touches }: Place,
  closings: ReadonlyMap<number, number>,
  { before, now }: Registrations,
  isIncomplete: boolean,
): number[] {
  const firstArrival = touches.findIndex(({ kind }) => kind === 'arrive')
  if (firstArrival < 0 || !touches.some((touch, i) => i > firstArrival && isDeparture(touch)))
    return touches.map(({ index }) => index)
  const count = (wanted: Touch['kind']) => touches.filter(({ kind }) => kind === wanted).length
  const oldPage = before(page, end)
  const wasThere = oldPage >= 0
  /** How many have come without an event. Less than none: what should have been there before was not. */
  const silent = () =>
    Number(now(wasThere ? oldPage : page)) - Number(wasThere) - count('arrive') + count('unmap')
  const isOld = wasThere && (isIncomplete || silent() >= 0)
  const generations: Generation[] = [{ events: [], first: 0, isAlive: isOld, hasMoved: false, knownFrom: 0 }]
  for (const [i, touch] of touches.entries()) {
    const { index, kind, first } = touch
    const newest = generations[generations.length - 1]
    const older = generations.slice(0, -1)
    const isOlder = isOfOlder(touch, newest)
    const untold = () => (silent() > 0 ? older[older.length - 1] : undefined)
    if (kind === 'arrive') {
      const knownFrom = closings.get(index) ?? 0
      generations.push({ events: [index], first, isAlive: true, hasMoved: false, knownFrom })
    } else if (kind === 'remove') newest.events.push(index)
    else if (kind === 'unmap') {
      const claimed = isOlder ? 0 : claims(touches.slice(i + 1), newest)
      const overdue = older.filter(({ isAlive }) => isAlive).at(claimed)
      const ending = overdue ?? (isOlder ? untold() : undefined) ?? newest
      ending.isAlive = false
      ending.events.push(index)
    } else {
      const overdue = older.find(({ isAlive, hasMoved }) => isAlive && !hasMoved)
      // What is moved and stays has not lost its place to anything yet.
      const moving =
        (isOlder || closings.has(index) ? overdue : undefined) ?? (isOlder ? untold() : undefined) ?? newest
      moving.hasMoved = true
      moving.events.push(index)
    }
  }
  return generations.flatMap(({ events }) => events)
}

/** Nobody else knows what is new, and what it is moved or unmapped with lies where it has arrived. */
function isOfOlder({ index, first }: Touch, newest: Generation): boolean {
  return index < newest.knownFrom || first < newest.first
}

/** How many UNMAPs that come before the next arrival are certainly not about the newest. */
function claims(later: readonly Touch[], newest: Generation): number {
  const next = later.findIndex(({ kind }) => kind === 'arrive')
  const meanwhile = next < 0 ? later : later.slice(0, next)
  return meanwhile.filter((touch) => touch.kind === 'unmap' && isOfOlder(touch, newest)).length
}

function isDeparture({ kind }: Touch): boolean {
  return kind === 'unmap' || kind === 'leave'
}

/** Each before those that follow it, otherwise as they were read. Where places contradict each other, one gives way. */
function sorted(after: readonly number[][]): number[] {
  const before: number[][] = after.map(() => [])
  for (const [index, followers] of after.entries()) for (const each of followers) before[each].push(index)
  const waitsFor = before.map(({ length }) => length)
  const left = new Set(after.keys())
  const order: number[] = []
  while (left.size > 0) {
    const next = firstWhere(left, (index) => waitsFor[index] === 0) ?? firstOfCycle(left, before)
    left.delete(next)
    order.push(next)
    for (const follower of after[next]) waitsFor[follower]--
  }
  return order
}

function firstWhere(indices: Iterable<number>, condition: (index: number) => boolean): number | undefined {
  for (const index of indices) if (condition(index)) return index
  return undefined
}

/** Each of those that are left waits for another one: the lowest number of some that wait for each other. */
function firstOfCycle(left: ReadonlySet<number>, before: readonly number[][]): number {
  const path: number[] = []
  let [index] = left as Iterable<number> as [number]
  for (;;) {
    const seen = path.indexOf(index)
    if (seen >= 0) return Math.min(...path.slice(seen))
    path.push(index)
    index = before[index].find((each) => left.has(each)) ?? index
  }
}
