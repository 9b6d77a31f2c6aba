import { asId, type SourceLanes } from '../lanes/lanes.js'
import type { OriginalProcess } from '../process.js'
import type { FrozenDump } from './frozen-dump.js'
import { sendHashes } from './hash-sender.js'
import { PageReader } from './page-reader.js'
import { sendPages } from './page-sender.js'

export interface FinalRoundOptions {
  /** Stopped, by whomever. */
  original: OriginalProcess
  lanes: SourceLanes
  /** One more than that of the last round. */
  round: number
  /** Hashes of everything that is not a zero page or a hole go along. */
  verify: boolean
  signal: AbortSignal
}

/**
 * What the destination still needs to let the workload run there: the state and the RoundBegin behind it have been sent. The
 * workload stands still meanwhile.
 */
export async function sendFinalRound(dump: FrozenDump, options: FinalRoundOptions): Promise<void> {
  const { lanes, round, verify, signal } = options
  const { pid, memFd } = options.original
  const { final, pagemap, map } = dump
  lanes.sendImage(pagemap, round)
  const reader = new PageReader(pid, memFd, null)
  const sent = await sendPages(final.present, reader, lanes.bulk, { asId, round, map, final: true, signal })
  if (verify) {
    const all = final.parent.clone().union(final.lazy).union(final.present)
    await sendHashes(all, pid, memFd, (frame, payload) => lanes.send(frame, payload), asId)
  }
  lanes.sendRoundEnd(round, true, sent.batchesPerLane)
}
