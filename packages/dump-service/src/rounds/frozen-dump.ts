import { PageferryError } from '@pageferry/base'
import {
  captureProcess,
  checkFamily,
  decodePagemapEntries,
  dumpMemoryMap,
  encodePagemapEntries,
  type FdInfo,
  hasUntrackedWriters,
  lockedPages,
  type NamedImage,
  type Problem,
  readFds,
  readStatus,
  readVmFlags,
  scanPresent,
} from '@pageferry/checkpoint'
import { imageFileName, PE_LAZY, PE_PARENT, PE_PRESENT } from '@pageferry/images'
import type { Mode } from '@pageferry/migration'
import {
  type AreaMap,
  type FinalPagemap,
  PageSet,
  pagemapEntries,
  SourcePages,
  sameAreas,
} from '@pageferry/pages'
import type { AddressSpace } from '../address-space.js'
import type { RoundsResult } from './rounds.js'

export interface FrozenDumpOptions {
  mode: Mode
  /**
   * Most hot pages that may travel inside the freeze; hot pages are written all the time. Default: the rounds' estimate
   * of what fits into the allowed downtime.
   */
  hotPages?: number
  /** Sends the state with the memory map. The destination restores it while memory is scanned here. */
  sendState(images: NamedImage[]): void
  /** Sends the map again, because the scan found guard regions. */
  sendMap(image: NamedImage): void
}

export interface FrozenDump {
  final: FinalPagemap
  /** pagemap-PID.img, the authority on the contents. */
  pagemap: NamedImage
  map: AreaMap
  /** Parts that stay behind. */
  notMoved: Problem[]
}

export interface FrozenLook {
  descriptors: FdInfo[]
  map: AreaMap
}

/**
 * Looks at a process that stands still, from outside.
 * @throws WORKLOAD_CHANGED when something has come since the preflight that cannot be moved
 */
export function lookAtFrozen(space: AddressSpace): FrozenLook {
  const { pid, rounds } = space
  space.requireSameProgram()
  refuseIf(checkFamily(pid))
  return { descriptors: readFds(pid), map: finalMap(pid, rounds) }
}

/**
 * Captures the process and classifies every page of its address space. All of it is downtime. The process must be
 * stopped by our tracer with a scratch area chosen. It stays stopped, also on failure.
 *
 * The scan comes last: writes of the capture itself (the timespec of an interrupted sleep) must count as written.
 */
export function dumpFrozen(
  space: AddressSpace,
  { descriptors, map }: FrozenLook,
  options: FrozenDumpOptions,
): FrozenDump {
  const { pid, task, files, rounds, tracker } = space
  const untracked = rounds?.untracked || hasUntrackedWriters(descriptors)
  space.mapScratch()
  const captured = captureProcess(task.stopped, map, descriptors, files, task.captureOptions)
  options.sendState([...captured.images, captured.mapImage(new PageSet())])
  space.unmapScratch()
  const scan = tracker?.scan(map) ?? scanPresent(pid, map)
  if (!scan.guards.isEmpty) options.sendMap(captured.mapImage(scan.guards))
  const pages = rounds?.pages ?? new SourcePages()
  const final = pages.finalPagemap({
    areas: map,
    presentOrSwapped: scan.present,
    doubtful: scan.doubtful,
    objectPages: scan.objectPages,
    written: scan.written,
    neverLazy: captured.neverLazy,
    trackingTrusted: !untracked,
    mode: options.mode,
    history: rounds?.history,
    presentBudgetPages: options.hotPages ?? rounds?.freezeBudgetPages,
  })
  const { notMoved } = captured
  return { final, pagemap: pagemapImage(task.facts.nsPid, final), map, notMoved }
}

/** Uses the flags of the last round if no area has changed since: reading them walks all page tables. */
function finalMap(pid: number, rounds: RoundsResult | null): AreaMap {
  const tracked = rounds !== null
  let { map, problems } = dumpMemoryMap(pid, rounds?.vmFlags ?? readVmFlags(pid), { tracked })
  const unchanged = rounds !== null && sameAreas(map, rounds.map)
  // The sum of the locked memory is visible without reading the flags.
  if (rounds !== null && !(unchanged && readStatus(pid).lockedPages === lockedPages(map))) {
    ;({ map, problems } = dumpMemoryMap(pid, readVmFlags(pid), { tracked }))
  }
  refuseIf(problems)
  return map
}

/** Something that cannot be moved has appeared since the preflight: the workload continues here. */
function refuseIf(problems: Problem[]): void {
  if (problems.length === 0) return
  throw new PageferryError('WORKLOAD_CHANGED', `${problems[0].what}: ${problems[0].reason}`, {
    details: { problems },
  })
}

function pagemapImage(nsPid: number, final: FinalPagemap): NamedImage {
  return { name: imageFileName('pagemap', nsPid), bytes: encodePagemapEntries(pagemapEntries(final)) }
}

/** The lazy pages in a pagemap image, for the successor of a dead worker. */
export function lazyPagesOf(image: Uint8Array): PageSet {
  return pagesWith(PE_LAZY, image)
}

/** Every page with contents in a pagemap image, likewise. */
export function contentsOfImage(image: Uint8Array): PageSet {
  return pagesWith(PE_LAZY | PE_PARENT | PE_PRESENT, image)
}

function pagesWith(wanted: number, image: Uint8Array): PageSet {
  const pages = new PageSet()
  for (const { first, nr, flags } of decodePagemapEntries(image)) {
    if ((flags & wanted) !== 0) pages.addRange(first, nr)
  }
  return pages
}

/** Every page whose contents the destination gets, in a round or later. */
export function contentsOf({ parent, lazy, present }: FinalPagemap): PageSet {
  return parent.clone().union(lazy).union(present)
}
