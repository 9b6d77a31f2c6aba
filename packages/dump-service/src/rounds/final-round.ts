import type { AddressSpace } from '../address-space.js'
import type { SourceLanes } from '../lanes/lanes.js'
import type { FrozenDump } from './frozen-dump.js'
import { sendPages } from './page-sender.js'

export interface FinalRoundOptions {
  lanes: SourceLanes
  /** The number of the last round plus one. */
  round: number
  signal: AbortSignal
}

/**
 * Sends the rest of what the destination needs to run the workload: the final pagemap and the PE_PRESENT pages. The
 * state and its RoundBegin have been sent. The workload stands still, before and afterwards.
 */
export async function sendFinalRound(
  space: AddressSpace,
  { final, pagemap, map }: FrozenDump,
  { lanes, round, signal }: FinalRoundOptions,
): Promise<void> {
  const { asId } = space
  lanes.sendImage({ asId, round }, pagemap)
  const how = { asId, round, map, final: true, signal }
  const sent = await sendPages(final.present, space.reader(), lanes.bulk, how)
  lanes.sendRoundEnd({ asId, round }, true, sent.batchesPerLane)
}
