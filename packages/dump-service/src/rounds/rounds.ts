import { performance } from 'node:perf_hooks'
import { PageferryError } from '@pageferry/base'
import {
  dumpMemoryMap,
  emptyScan,
  filesImages,
  findGhosts,
  hasUntrackedWriters,
  mmImage,
  mmOfRound,
  readFds,
  readVmFlags,
  type VmFlags,
} from '@pageferry/checkpoint'
import type { RoundReport } from '@pageferry/migration'
import { type Area, AreaMap, SourcePages, StopRule, sameAreas, WriteHistory } from '@pageferry/pages'
import type { Settings } from '@pageferry/service'
import type { FrameOf } from '@pageferry/wire'
import type { AddressSpace } from '../address-space.js'
import type { SourceLanes } from '../lanes/lanes.js'
import type { GhostSender } from './ghost-sender.js'
import type { Pace } from './pacing.js'
import { sendPages } from './page-sender.js'

export interface RoundsOptions {
  lanes: SourceLanes
  settings: Pick<Settings, 'mode' | 'maxRounds' | 'maxDowntimeMs'>
  pacing: Pace
  ghosts: GhostSender
  roundApplied(): Promise<FrameOf<'roundApplied'>>
  onRound(report: RoundReport): void
  onProgress(round: number, pages: number, totalPages: number): void
  /** Wraps one round, for timing and injected faults. */
  phase<T>(fn: () => Promise<T>): Promise<T>
  signal: AbortSignal
}

/** Results of the rounds for the freeze. */
export interface RoundsResult {
  pages: SourcePages
  history: WriteHistory
  /** Number of the last round; the final one is the next. */
  lastRound: number
  map: AreaMap
  vmFlags: VmFlags
  /** Hot pages that may travel inside the freeze within the allowed downtime. */
  freezeBudgetPages: number
  /** A device or another process has written past the page tables. Trackers cannot see that, so none is trusted. */
  untracked: boolean
}

/**
 * The pre-dump rounds of one address space, which must be tracked. The workload runs before and afterwards, also when a
 * round fails.
 *
 * A round reads the map and announces it, scans the written pages and protects them again, *then* reads and sends them.
 * A page that is written in between is sent torn. The next scan reports it, and it is sent again.
 *
 * The scan at a round's end decides whether there is another round, and is the first scan of that round. A scan is
 * expensive: it interrupts every processor that runs the workload, once for each 2 MiB with a written page. Only a map
 * that has changed meanwhile is scanned once more, for its new areas.
 */
export async function runRounds(space: AddressSpace, options: RoundsOptions): Promise<RoundsResult> {
  const { lanes, signal, ghosts } = options
  const { pid, asId, tracker } = space
  if (tracker === null) throw new PageferryError('INTERNAL', `address space ${asId} is not tracked`)
  const pages = new SourcePages()
  const history = new WriteHistory()
  const { mode, maxRounds, maxDowntimeMs } = options.settings
  const rule = new StopRule({ maxRounds, maxDowntimeMs, canFollowLazily: mode !== 'precopy' })
  const reader = space.reader(tracker)
  let vmFlags: VmFlags = new Map()
  let map = new AreaMap()
  let untracked = false
  /** The scan at the end of the previous round. */
  let scan = emptyScan()
  let round = 0
  for (;;) {
    round++
    const result = await options.phase(async () => {
      const began = performance.now()
      const mapBefore = map
      vmFlags = readVmFlags(pid)
      map = dumpMemoryMap(pid, vmFlags, { tracked: true }).map
      await ghosts.send(() => findGhosts(pid), { lanes, pacing: options.pacing, signal })
      map = withoutLostGhosts(map, ghosts)
      announce(space, map, round, lanes)
      pages.noteAreas(map)
      if (round === 1 || !sameAreas(map, mapBefore)) {
        const { written } = scan
        scan = tracker.scan(map)
        pages.noteWrittenPages(scan.written)
        // Pages of the previous round are recorded already, and a page counts once in each round.
        if (round > 1) history.record(scan.written.clone().subtract(written), round)
      }
      const todo = pages.roundTodo().intersect(scan.present.clone().union(scan.doubtful))
      const total = todo.count
      const sent = await sendPages(todo, reader, lanes.bulk, {
        asId,
        round,
        map,
        final: false,
        pacing: options.pacing,
        signal,
        onSent: (runs) => pages.noteSent(runs),
        onZero: (runs) => pages.noteZero(runs),
        onVanished: (runs) => {
          for (let r = 0; r < runs.length; r += 2) pages.noteUnmapped(runs[r], runs[r + 1])
        },
        onProgress: (done) => options.onProgress(round, done, total),
      })
      lanes.sendRoundEnd({ asId, round }, false, sent.batchesPerLane)
      await options.roundApplied()
      const durationMs = performance.now() - began
      untracked ||= hasUntrackedWriters(readFds(pid))
      options.onRound({ round, pages: sent.pages, zeroPages: sent.zeroPages, bytes: sent.bytes, durationMs })
      return { ...sent, durationMs }
    })
    signal.throwIfAborted()
    // A scan forgets the pages that it reports, so enter its result into the bookkeeping at once.
    scan = tracker.scan(map)
    pages.noteWrittenPages(scan.written)
    history.record(scan.written, round + 1)
    const decision = rule.decide({
      pagesSent: result.pages,
      dirtyNow: pages.dirtyCount,
      bytes: result.pageBytes,
      durationMs: result.durationMs,
    })
    if (decision.action === 'freeze') {
      const { freezeBudgetPages } = rule
      return { pages, history, lastRound: round, map, vmFlags, freezeBudgetPages, untracked }
    }
  }
}

/** What was unmapped before its file could be opened is left out: the destination could not map it. */
function withoutLostGhosts(map: AreaMap, ghosts: GhostSender): AreaMap {
  const isLost = ({ ghost }: Area): boolean => ghost !== undefined && !ghosts.has(ghost)
  return map.areas.some(isLost) ? new AreaMap(map.areas.filter((area) => !isLost(area))) : map
}

/** The map of a round travels as image files, like everything that describes the process. */
function announce(
  { asId, files, task }: AddressSpace,
  map: AreaMap,
  round: number,
  lanes: SourceLanes,
): void {
  const name = { asId, round }
  lanes.sendImage(name, mmImage(task.facts.nsPid, mmOfRound(map, files)))
  for (const image of filesImages(files)) lanes.sendImage(name, image)
  lanes.sendRoundBegin(name, false)
}
