import type { Source } from '../source.js'
import { Push } from './push.js'
import { SentBitmap } from './sent-bitmap.js'

/** How long the push waits for Running. If it takes longer, the link is slow, and the pages should be under way. */
const pushHoldMs = 30

/**
 * Answers faults and pushes the other lazy pages, until the machine decides to resume or to kill. The workload is
 * frozen.
 */
export async function serve(source: Source, signal: AbortSignal): Promise<void> {
  const { spec, workload, lanes, records, pacing, running, log } = source
  await listenAgain(source)
  const { space } = workload
  const { asId, pid, memFd } = space
  const round = records.finalRound + 1
  const lazy = space.lazy ?? records.lazyPages(asId)
  const sent = new SentBitmap(lazy.runTable())
  const faults = lanes.serveFaults({ pid, asId, round, sent: sent.shared })
  source.push = new Push({
    pid,
    memFd,
    asId,
    round,
    sent,
    faults,
    history: space.rounds?.history,
    lanes: lanes.bulk,
    hold: { until: running.promise, atMostMs: pushHoldMs },
    pushDelayMs: spec.request.pushDelayMs,
    pacing,
    log,
  })
  await source.push.run(signal)
}

/** After a takeover, listens on the ports that the destination knows. */
export async function listenAgain({ lanes, records }: Source): Promise<void> {
  const { ports } = records
  if (!lanes.isListening && ports !== undefined) await lanes.listen(ports)
}
