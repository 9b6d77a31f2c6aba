import { findGhosts, groupProblems, leftBehind } from '@pageferry/checkpoint'
import { collectYoungGarbage } from '@pageferry/service/worker'
import type { Source } from '../source.js'
import { sendFinalRound } from './final-round.js'
import { contentsOf, dumpFrozen, type FrozenDump, lookAtFrozen } from './frozen-dump.js'

/** Stops every thread. Slow steps that can be done earlier are done first. On failure the workload runs. */
export async function freeze(source: Source, signal: AbortSignal): Promise<void> {
  const { workload, records, status, report, lanes, pacing } = source
  await workload.ghosts.send(() => findGhosts(workload.root.pid), { lanes, pacing, signal })
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
  const frozen = await phases.run('capture', () => capture(source, round, signal))
  report.noteCaptured(frozen.final.counts)
  report.noteNotMoved(groupProblems(frozen.notMoved))
  space.lazy = frozen.final.lazy
  space.contents = contentsOf(frozen.final)
  space.pagemap = frozen.pagemap.bytes
  await phases.run('transfer', () => sendFinalRound(space, frozen, { lanes, round, signal }))
  // The destination restores at the same time, so this adds nothing to the downtime.
  report.noteNotMoved(groupProblems([...leftBehind(workload.root.pid), ...workload.ghosts.notMoved]))
  records.saveDumpEnd({ finalRound: round, report: report.now(lanes) })
}

/** Covers the time from the stop until the threads have their own state again. */
async function capture(source: Source, round: number, signal: AbortSignal): Promise<FrozenDump> {
  const { spec, workload, lanes, settings } = source
  const { space } = workload
  const name = { asId: space.asId, round }
  const look = lookAtFrozen(space)
  const mapsGhosts = look.map.areas.some(({ ghost }) => ghost !== undefined)
  // In front of the state, which makes the destination open and map them.
  const find = () => findGhosts(space.pid, look.descriptors, mapsGhosts ? undefined : [])
  await workload.ghosts.send(find, { lanes, signal })
  return dumpFrozen(space, look, {
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
