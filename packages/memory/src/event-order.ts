import type { LazyEvent } from './lazy-map.js'

/**
 * The order in which the changes of an address space happened, from the order in which their events were read.
 *
 * A thread queues its event only after it has let go of the memory map. So A unmaps X, the mremap of B is given X, and
 * B's event may be read before A's. And the UNMAP of a moved range always comes late: it is queued after REMAP was read.
 *
 * What helps is that everything can wait: as long as one change is between its doing and the reading of its event, the
 * kernel lets nobody install (UFFDIO_COPY answers EAGAIN). So events are collected until the address space is quiet;
 * then all of them are there, and these facts put them in order:
 *
 * - Memory that arrives at X by mremap found nothing there. Whoever had X before has said UNMAP for it, once, or will.
 *   So what lies at X are *generations*, each begun by a REMAP and ended by one UNMAP; the first was there before.
 * - Whether there was a first one follows from whether X is registered now.
 * - mremap says where to when its event was read. So whatever is done to the new memory is read after that, and arrivals
 *   at X are read in their order. Only what concerns an older generation can come late.
 * - REMOVE is sent before the change and waited for, so it is about the generation that arrived last.
 *
 * Left open is which of two generations a REMAP away from X moves, while the UNMAPs of both are still to come. It is
 * taken for the older one's, whose UNMAP is overdue.
 */
export type MapEvent = Exclude<LazyEvent, { type: 'installed' }>

interface Touch {
  index: number
  kind: 'arrive' | 'leave' | 'unmap' | 'remove'
}

interface Range extends Touch {
  first: number
  end: number
}

/**
 * @param isRegistered whether a page is registered with the userfaultfd, now that no change is under way
 * @returns indices of `events` in the order of their changes
 */
export function trueOrder(events: readonly MapEvent[], isRegistered: (page: number) => boolean): number[] {
  const ranges = events.flatMap(rangesOf)
  const after: number[][] = events.map(() => [])
  let isMixed = false
  for (const [first, touches] of segments(ranges)) {
    const ordered = byGeneration(touches, isRegistered, first)
    for (let i = 1; i < ordered.length; i++) {
      after[ordered[i - 1]].push(ordered[i])
      isMixed ||= ordered[i - 1] > ordered[i]
    }
  }
  return isMixed ? sorted(after) : events.map((_, index) => index)
}

function rangesOf(event: MapEvent, index: number): Range[] {
  if (event.type !== 'remap')
    return [{ index, kind: event.type, first: event.first, end: event.first + event.nr }]
  const { from, to, nr } = event
  return [
    { index, kind: 'leave', first: from, end: from + nr },
    { index, kind: 'arrive', first: to, end: to + nr },
  ]
}

/** The stretches between borders at which memory arrived and something else happened: [first page, what happened]. */
function segments(ranges: readonly Range[]): Array<[first: number, touches: Touch[]]> {
  const found: Array<[number, Touch[]]> = []
  if (!ranges.some(({ kind }) => kind === 'arrive')) return found
  const borders = [...new Set(ranges.flatMap(({ first, end }) => [first, end]))].sort((a, b) => a - b)
  const begins = ranges.slice().sort((a, b) => a.first - b.first)
  let open: Range[] = []
  let next = 0
  for (const border of borders) {
    open = open.filter(({ end }) => end > border)
    for (; next < begins.length && begins[next].first === border; next++) open.push(begins[next])
    if (open.length > 1) found.push([border, open.slice().sort((a, b) => a.index - b.index)])
  }
  return found
}

/** The events of one place, oldest generation first, and as they were read within each. */
function byGeneration(
  touches: readonly Touch[],
  isRegistered: (page: number) => boolean,
  page: number,
): number[] {
  const count = (wanted: Touch['kind']) => touches.filter(({ kind }) => kind === wanted).length
  const arrivals = count('arrive')
  // Nothing that could be late: no question to the kernel.
  const isPlain =
    arrivals === 0 || touches.every(({ kind }, i) => kind !== 'arrive' || !touches.slice(i).some(isDeparture))
  if (isPlain) return touches.map(({ index }) => index)
  const generations: Array<{ events: number[]; hasMoved: boolean }> = [{ events: [], hasMoved: false }]
  let oldest = Number(isRegistered(page)) + count('unmap') - arrivals > 0 ? 0 : 1
  const early: number[] = []
  for (const { index, kind } of touches) {
    const last = generations.length - 1
    if (kind === 'arrive') generations.push({ events: [index], hasMoved: false })
    else if (kind === 'remove') generations[last].events.push(index)
    else if (oldest > last) early.push(index)
    else if (kind === 'unmap') generations[oldest++].events.push(index)
    else {
      let which = oldest
      while (which < last && generations[which].hasMoved) which++
      generations[which].hasMoved = true
      generations[which].events.push(index)
    }
  }
  return [...early, ...generations.flatMap(({ events }) => events)]
}

function isDeparture({ kind }: Touch): boolean {
  return kind === 'unmap' || kind === 'leave'
}

/** Each before those that follow it; as they were read where nothing else is said, or where it contradicts itself. */
function sorted(after: readonly number[][]): number[] {
  const waitsFor = new Array<number>(after.length).fill(0)
  for (const followers of after) for (const follower of followers) waitsFor[follower]++
  const left = new Set(after.keys())
  const order: number[] = []
  while (left.size > 0) {
    let next = -1
    for (const index of left) {
      if (next < 0) next = index
      if (waitsFor[index] > 0) continue
      next = index
      break
    }
    left.delete(next)
    order.push(next)
    for (const follower of after[next]) waitsFor[follower]--
  }
  return order
}
