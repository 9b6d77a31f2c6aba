import { closeSync, existsSync, openSync } from 'node:fs'
import { isKernelError, PageferryError } from '@pageferry/base'
import { pagemap, uffd } from '@pageferry/kernel'
import type { AreaMap } from '@pageferry/pages'
import { readMaps } from '../proc/maps.js'
import { readStat } from '../proc/stat.js'
import { PageHashTracker } from './page-hash.js'
import { noteThere, walkArea } from './pagemap-walk.js'
import { SoftDirtyTracker } from './soft-dirty.js'
import {
  emptyScan,
  type MemoryScan,
  scanSharedMemory,
  type Tracker,
  type TrackerKind,
  trackedAreas,
} from './tracker.js'
import { WpAsyncTracker } from './wp-async.js'

/** The trackers that this kernel has, best first. The last one always works. */
export function availableTrackers(): TrackerKind[] {
  const kinds: TrackerKind[] = []
  if (hasWpAsync()) kinds.push('wp-async')
  if (hasSoftDirty()) kinds.push('soft-dirty')
  kinds.push('page-hash')
  return kinds
}

/** Opens the best tracker, or the requested one. */
export function openTracker(pid: number, kind?: TrackerKind): Tracker {
  const kinds = availableTrackers()
  if (kind !== undefined && !kinds.includes(kind)) {
    throw new PageferryError('UNSUPPORTED_HOST', `this kernel has no ${kind} tracking`)
  }
  switch (kind ?? kinds[0]) {
    case 'wp-async':
      return WpAsyncTracker.open(pid)
    case 'soft-dirty':
      return new SoftDirtyTracker(pid)
    case 'page-hash':
      return new PageHashTracker(pid)
  }
}

/** Finds the pages of the process without tracking, for a migration without pre-dump rounds. */
export function scanPresent(pid: number, map: AreaMap): MemoryScan {
  const scan: MemoryScan = emptyScan()
  const pagemapFd = openSync(`/proc/${pid}/pagemap`, 'r')
  try {
    for (const area of trackedAreas(map)) {
      if (area.kind === 'shared-anon') scanSharedMemory(pid, area, scan)
      else {
        walkArea(pagemapFd, area, 0, scan, (first, nr, categories) => noteThere(scan, first, nr, categories))
      }
    }
  } finally {
    closeSync(pagemapFd)
  }
  scan.written.union(scan.present).union(scan.doubtful)
  return scan
}

function hasWpAsync(): boolean {
  let fd: number
  try {
    fd = uffd.create(uffd.UFFD_USER_MODE_ONLY)
  } catch (error) {
    if (isKernelError(error, 'ENOSYS', 'EPERM')) return false
    throw error
  }
  try {
    uffd.api(fd, uffd.UFFD_FEATURE_WP_ASYNC | uffd.UFFD_FEATURE_WP_UNPOPULATED)
    return true
  } catch (error) {
    if (isKernelError(error, 'EINVAL')) return false
    throw error
  } finally {
    closeSync(fd)
  }
}

/** Whether a page that we have just written has the bit, as it does if the kernel keeps it. */
function hasSoftDirty(): boolean {
  if (!existsSync('/proc/self/clear_refs')) return false
  const pagemapFd = openSync('/proc/self/pagemap', 'r')
  try {
    const entries = new BigUint64Array(1)
    const stackPage = stackPageOfThisProcess()
    return pagemap.read(pagemapFd, stackPage, 1, entries) === 1 && (entries[0] & pagemap.PM_SOFT_DIRTY) !== 0n
  } finally {
    closeSync(pagemapFd)
  }
}

/** The top of our own stack, which was certainly written: it holds argv and environment. */
function stackPageOfThisProcess(): number {
  const { startStack } = readStat(process.pid)
  const page = Number(startStack >> 12n)
  if (readMaps(process.pid).some((area) => page >= area.start && page < area.start + area.nrPages))
    return page
  throw new PageferryError('INTERNAL', 'our own stack is not mapped')
}
