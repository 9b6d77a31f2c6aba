import type { Source } from '../source.js'
import { runRounds } from './rounds.js'

/** The rounds: sends most of the memory while the workload runs. It keeps running afterwards. */
export async function precopy(source: Source, signal: AbortSignal): Promise<void> {
  const { spec, workload, lanes, settings, pacing, inbox, report, status, phases, log } = source
  const { space } = workload
  const tracker = space.track(spec.request.tracker)
  log.info({ tracker: tracker.kind }, 'tracking')
  space.rounds = await runRounds(space, {
    lanes,
    settings,
    pacing,
    ghosts: workload.ghosts,
    roundApplied: () => inbox.next('roundApplied', signal),
    onRound: (round) => {
      report.noteRound(round)
      const { pages } = round
      status.show({ phase: 'round', round: round.round, pages, totalPages: pages }, true)
    },
    onProgress: (round, pages, totalPages) => status.show({ phase: 'round', round, pages, totalPages }),
    phase: (fn) => phases.run('round', fn),
    signal,
  })
}
