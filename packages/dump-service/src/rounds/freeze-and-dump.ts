import { groupProblems, leftBehind } from '@pageferry/checkpoint'
import { collectYoungGarbage } from '@pageferry/service/worker'
import type { Source } from '../source.js'
import { sendFinalRound } from './final-round.js'
import { contentsOf, dumpFrozen, type FrozenDump } from './frozen-dump.js'

/** Stops every thread. Slow steps that can be done earlier are done first. On failure the workload runs. */
export function freeze({ workload, records, status, report }: Source): void {
  records.createFiles(workload.spaces.keys())
  for (const space of workload.spaces.values()) space.chooseScratch()
  status.beQuiet()
  collectYoungGarbage()
  report.noteFrozen(workload.stop(() => report.noteFreeze()))
}

/** Sends the state, the final pagemap and the last pages. The workload stays stopped by our tracer, also on failure. */
export async function dump(source: Source, signal: AbortSignal): Promise<void> {
  const { workload, lanes, phases, report, records } = source
  const { space } = workload
  const round = (space.rounds?.lastRound ?? 0) + 1
  const frozen = await phases.run('capture', () => capture(source, round))
  report.noteCaptured(frozen.final.counts)
  report.noteNotMoved(groupProblems(frozen.notMoved))
  space.lazy = frozen.final.lazy
  space.contents = contentsOf(frozen.final)
  space.pagemap = frozen.pagemap.bytes
  await phases.run('transfer', () => sendFinalRound(space, frozen, { lanes, round, signal }))
  // The destination restores at the same time, so this adds nothing to the downtime.
  report.noteNotMoved(groupProblems(leftBehind(workload.root.pid)))
  records.saveDumpEnd({ finalRound: round, report: report.now(lanes) })
}

/** Covers the time from the stop until the threads have their own state again. */
function capture({ spec, workload, lanes, settings }: Source, round: number): FrozenDump {
  const { space } = workload
  const name = { asId: space.asId, round }
  return dumpFrozen(space, {
    hotPages: spec.request.pushDelayMs ? 0 : undefined,
    mode: settings.mode,
    sendState: (images) => {
      for (const image of images) lanes.sendImage(name, image)
      lanes.sendRoundBegin(name, true)
    },
    sendMap: (image) => lanes.sendImage(name, image),
  })
}

/**
 * The freezer takes over, so that the workload stands still whatever happens to this worker. The pagemaps are written
 * now, while the destination restores. A successor needs them from the commit on.
 */
export function keepFrozen({ workload, records }: Source): void {
  workload.keepFrozen()
  for (const space of workload.spaces.values()) {
    if (space.pagemap !== null) records.savePagemap(space.asId, space.pagemap)
    space.pagemap = null
  }
}
