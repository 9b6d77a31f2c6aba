import type { LazyEvent } from './lazy-map.js'

/**
 * Finds the order in which the changes of an address space happened, from the order in which their events were read.
 *
 * A thread queues its event only after it has released the memory map. So A unmaps X, the mremap of B gets X, and B's
 * event may be read before A's. And the UNMAP of a moved range always comes late: it is queued after REMAP was read.
 *
 *   A   munmap(X) ........ preempted ........... UNMAP X
 *   B             mremap(Z, gets X)  REMAP Z X ............. UNMAP Z
 *   read                             REMAP Z X   UNMAP X     UNMAP Z       in this order, B's pages are lost
 *
 * Everything can wait: while an event is not read yet, the kernel refuses every installation (UFFDIO_COPY answers
 * EAGAIN). So events are collected until the address space is quiet; then all of them are there. They keep the order of
 * reading, unless that is impossible:
 *
 * - Memory that arrives at X by mremap found nothing there. The previous memory at X has one UNMAP, read already or
 * still to come. So X holds *generations*. Each begins with a REMAP, and ends with the next UNMAP that no older
 * generation lacks.
 * - mremap returns the new address after its event was read. So events of the new memory are read after that, and
 * arrivals at X are read in their order. Only events of an older generation can come late.
 * - No other thread knows the new memory before the mremap returns. That is after its UNMAP(from) was read, if it has
 * one.
 * - REMOVE is sent before the change, which waits for it. So it belongs to the latest generation.
 * - Memory may come to X without any event, when it grows in place or grows while it moves. Its UNMAP is distinguished
 * from that of arrived memory only where it must be.
 *
 * One question stays open: which of two generations a REMAP away from X moves, while the UNMAPs of both are still to
 * come. We take the older one, whose UNMAP is overdue. And memory that grows where others have come and gone since
 * `before` may be taken for one of them.
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
  /** First page of the whole range that arrived with it. */
  first: number
  /** Its UNMAP was not read. */
  isAlive: boolean
  hasMoved: boolean
  /** Before the event of this number only the thread that moved the memory here can have changed it. */
  knownFrom: number
}

/** Other facts about the address space. */
export interface Registrations {
  /**
   * The first of pages first .. end-1 that was registered before all of the events, as far as events tell; -1: none.
   */
  before(first: number, end: number): number
  /** Whether a page is registered with the userfaultfd, when no change is under way. Rarely called. */
  now(page: number): boolean
}

/**
 * @param nrInherited number of leading events that are a parent's: its events after the fork are missing
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
 * Finds for each REMAP the UNMAP of its old place; without one (MREMAP_DONTUNMAP) there is no entry. An UNMAP that only
 * the parent received counts as later than everything.
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

/** The ranges in which several events happened, if memory arrived anywhere. */
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

/** The events of one place: oldest generation first, in the order of reading within each. */
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
  /** How many generations came without an event. Negative: memory that should have been there before was not. */
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
      // Memory that is moved and also stays (MREMAP_DONTUNMAP) has not lost its place yet.
      const moving =
        (isOlder || closings.has(index) ? overdue : undefined) ?? (isOlder ? untold() : undefined) ?? newest
      moving.hasMoved = true
      moving.events.push(index)
    }
  }
  return generations.flatMap(({ events }) => events)
}

/**
 * Whether an event concerns older memory. Only its own thread knows new memory, and changes it only where it has
 * arrived.
 */
function isOfOlder({ index, first }: Touch, newest: Generation): boolean {
  return index < newest.knownFrom || first < newest.first
}

/** How many UNMAPs before the next arrival certainly do not belong to the newest generation. */
function claims(later: readonly Touch[], newest: Generation): number {
  const next = later.findIndex(({ kind }) => kind === 'arrive')
  const meanwhile = next < 0 ? later : later.slice(0, next)
  return meanwhile.filter((touch) => touch.kind === 'unmap' && isOfOlder(touch, newest)).length
}

function isDeparture({ kind }: Touch): boolean {
  return kind === 'unmap' || kind === 'leave'
}

/**
 * Sorts each event before those that follow it, otherwise as they were read. If places contradict each other, one
 * yields.
 */
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

/** Every event left waits for another one. Returns the lowest number in such a cycle. */
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
