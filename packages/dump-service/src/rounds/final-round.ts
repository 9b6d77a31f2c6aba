import { asId, type SourceLanes } from '../lanes/lanes.js'
import type { OriginalProcess } from '../process.js'
import type { FrozenDump } from './frozen-dump.js'
import { PageReader } from './page-reader.js'
import { sendPages } from './page-sender.js'

export interface FinalRoundOptions {
  /** Stopped, by whomever. */
  original: OriginalProcess
  lanes: SourceLanes
  /** One more than that of the last round. */
  round: number
  signal: AbortSignal
}

/**
 * What the destination still needs to let the workload run there: the state and the RoundBegin behind it have been sent. The
 * workload stands still meanwhile.
 */
export async function sendFinalRound(dump: FrozenDump, options: FinalRoundOptions): Promise<void> {
  const { lanes, round, signal } = options
  const { pid, memFd } = options.original
  const { final, pagemap, map } = dump
  lanes.sendImage(pagemap, round)
  const reader = new PageReader(pid, memFd, null)
  const sent = await sendPages(final.present, reader, lanes.bulk, { asId, round, map, final: true, signal })
  lanes.sendRoundEnd(round, true, sent.batchesPerLane)
}
