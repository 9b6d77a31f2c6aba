import { performance } from 'node:perf_hooks'
import {
  dumpMemoryMap,
  emptyScan,
  type FileTable,
  filesImage,
  hasUntrackedWriters,
  mmImage,
  mmOfRound,
  readFds,
  readVmFlags,
  type Tracker,
  type VmFlags,
} from '@pageferry/checkpoint'
import type { RoundReport } from '@pageferry/migration'
import { AreaMap, SourcePages, StopRule, sameAreas, WriteHistory } from '@pageferry/pages'
import type { Settings } from '@pageferry/service'
import type { FrameOf } from '@pageferry/wire'
import { asId, type SourceLanes } from '../lanes/lanes.js'
import type { OriginalProcess } from '../process.js'
import type { Pace } from './pacing.js'
import { PageReader } from './page-reader.js'
import { sendPages } from './page-sender.js'

export interface RoundsOptions {
  original: OriginalProcess
  tracker: Tracker
  files: FileTable
  lanes: SourceLanes
  settings: Pick<Settings, 'mode' | 'maxRounds' | 'maxDowntimeMs'>
  pacing: Pace
  roundApplied(): Promise<FrameOf<'roundApplied'>>
  onRound(report: RoundReport): void
  onProgress(round: number, pages: number, total: number): void
  /** Wraps one round, for timing and injected faults. */
  phase<T>(fn: () => Promise<T>): Promise<T>
  signal: AbortSignal
}

/** What the rounds leave for the freeze. */
export interface RoundsResult {
  pages: SourcePages
  history: WriteHistory
  /** Number of the last round; the final one is the next. */
  lastRound: number
  map: AreaMap
  vmFlags: VmFlags
  /** Hot pages that may travel inside the freeze within the allowed downtime. */
  freezeBudgetPages: number
  /** Somebody was there whose writes no tracker sees: then it cannot be trusted any more. */
  untracked: boolean
}

/**
 * The pre-dump rounds. Each one: look at the map and tell the destination, scan what was written and protect
 * it again, *then* read it and send it. A page that is written in between is sent torn and reported by the next
 * scan, so it is sent again. The scan at a round's end says whether there is another one, and serves as its first: a
 * scan interrupts every processor that runs the workload once for each 2 MiB with a written page. Only where the map has
 * changed meanwhile there is one more, for the new areas.
 */
export async function runRounds(options: RoundsOptions): Promise<RoundsResult> {
  const { original, tracker, lanes, signal } = options
  const { pid, memFd } = original
  const pages = new SourcePages()
  const history = new WriteHistory()
  const { mode, maxRounds, maxDowntimeMs } = options.settings
  const rule = new StopRule({ maxRounds, maxDowntimeMs, canFollowLazily: mode !== 'precopy' })
  let vmFlags: VmFlags = new Map()
  let map = new AreaMap()
  let untracked = false
  /** At the end of the round before. */
  let scan = emptyScan()
  let round = 0
  for (;;) {
    round++
    const result = await options.phase(async () => {
      const began = performance.now()
      const mapBefore = map
      vmFlags = readVmFlags(pid)
      map = dumpMemoryMap(pid, vmFlags, { tracked: true }).map
      announce(map, round, options)
      pages.noteAreas(map)
      if (round === 1 || !sameAreas(map, mapBefore)) {
        const { written } = scan
        scan = tracker.scan(map)
        pages.noteWrittenPages(scan.written)
        // Those of the round before are recorded already, and a page counts once in each.
        if (round > 1) history.record(scan.written.clone().subtract(written), round)
      }
      const todo = pages.roundTodo().intersect(scan.present.clone().union(scan.doubtful))
      const total = todo.count
      const reader = new PageReader(pid, memFd, tracker)
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
      lanes.sendRoundEnd(round, false, sent.batchesPerLane)
      await options.roundApplied()
      const durationMs = performance.now() - began
      untracked ||= hasUntrackedWriters(readFds(pid))
      options.onRound({ round, pages: sent.pages, zeroPages: sent.zeroPages, bytes: sent.bytes, durationMs })
      return { ...sent, durationMs }
    })
    signal.throwIfAborted()
    // A scan forgets what it reports, so its result is entered into the bookkeeping at once.
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

/** The map of a round travels as image files, like everything that describes the process. */
function announce(map: AreaMap, round: number, options: RoundsOptions): void {
  const { original, lanes, files } = options
  lanes.sendImage(mmImage(original.facts.nsPid, mmOfRound(map, files)), round)
  lanes.sendImage(filesImage(files), round)
  lanes.sendRoundBegin(round, false)
}
