import { performance } from 'node:perf_hooks'
import {
  dumpMemoryMap,
  type FileTable,
  filesImage,
  mmImage,
  mmOfRound,
  type NamedImage,
  readVmFlags,
  type Tracker,
  type VmFlags,
} from '@pageferry/checkpoint'
import { type AreaMap, SourcePages, StopRule, WriteHistory } from '@pageferry/memory'
import type { RoundReport } from '@pageferry/migration'
import type { FrameOf } from '@pageferry/wire'
import type { BulkLane } from './bulk-lane.js'
import { PageReader } from './page-reader.js'
import { sendPages } from './page-sender.js'

export interface RoundsOptions {
  pid: number
  nsPid: number
  asId: number
  memFd: number
  tracker: Tracker
  files: FileTable
  lanes: BulkLane[]
  maxRounds: number
  maxDowntimeMs: number
  sendImage(image: NamedImage, round: number): void
  sendRoundBegin(round: number): void
  sendRoundEnd(round: number, batchesPerLane: number[]): void
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
}

/**
 * The pre-dump rounds. Each one: look at the map and tell the destination, scan what was written and protect
 * it again, *then* read it and send it. A page that is written in between is sent torn and reported by the next
 * scan, so it is sent again.
 */
export async function runRounds(options: RoundsOptions): Promise<RoundsResult> {
  const { pid, tracker, signal } = options
  const pages = new SourcePages()
  const history = new WriteHistory()
  const rule = new StopRule(options)
  let vmFlags = readVmFlags(pid)
  let map = dumpMemoryMap(pid, vmFlags, { tracked: true }).map
  let round = 0
  for (;;) {
    round++
    const result = await options.phase(async () => {
      const began = performance.now()
      vmFlags = readVmFlags(pid)
      map = dumpMemoryMap(pid, vmFlags, { tracked: true }).map
      announce(map, round, options)
      pages.noteAreas(map)
      const scan = tracker.scan(map)
      pages.noteWrittenPages(scan.written)
      if (round > 1) history.record(scan.written, round)
      const todo = pages.roundTodo().intersect(scan.present.clone().union(scan.doubtful))
      const total = todo.count
      const reader = new PageReader(pid, options.memFd, tracker)
      const sent = await sendPages(todo, reader, options.lanes, {
        asId: options.asId,
        round,
        map,
        final: false,
        signal,
        onSent: (runs) => pages.noteSent(runs),
        onZero: (runs) => pages.noteZero(runs),
        onVanished: (runs) => {
          for (let r = 0; r < runs.length; r += 2) pages.noteUnmapped(runs[r], runs[r + 1])
        },
        onProgress: (done) => options.onProgress(round, done, total),
      })
      options.sendRoundEnd(round, sent.batchesPerLane)
      await options.roundApplied()
      const durationMs = performance.now() - began
      options.onRound({ round, pages: sent.pages, zeroPages: sent.zeroPages, bytes: sent.bytes, durationMs })
      return { ...sent, durationMs }
    })
    signal.throwIfAborted()
    const decision = rule.decide({
      pagesSent: result.pages,
      dirtyNow: estimateDirty(tracker, map, pages),
      bytes: result.bytes,
      durationMs: result.durationMs,
    })
    if (decision.action === 'freeze') return { pages, history, lastRound: round, map, vmFlags }
  }
}

/** The map of a round travels as image files, like everything that describes the process. */
function announce(map: AreaMap, round: number, options: RoundsOptions): void {
  options.sendImage(mmImage(options.nsPid, mmOfRound(map, options.files)), round)
  options.sendImage(filesImage(options.files), round)
  options.sendRoundBegin(round)
}

/** A scan forgets what it reports, so its result is entered into the bookkeeping at once. */
function estimateDirty(tracker: Tracker, map: AreaMap, pages: SourcePages): number {
  pages.noteWrittenPages(tracker.scan(map).written)
  return pages.dirtyCount
}
