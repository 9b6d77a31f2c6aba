import type { RoundFrame } from '@pageferry/migration'
import { WireError } from '@pageferry/wire'
import type { Destination } from '../destination.js'

/** Takes a frame of a round, which bypasses the machine: see destination-machine.ts. */
export function takeRoundFrame(
  destination: Pick<Destination, 'members' | 'imageReceiver' | 'status' | 'post'>,
  frame: RoundFrame,
  payload: Uint8Array,
): void {
  const { members, imageReceiver, status, post } = destination
  if (frame.type === 'image') {
    imageReceiver.add(frame, payload)
    return
  }
  const rounds = members.get(frame.asId)?.rounds
  if (rounds == null) {
    const error = new WireError('OUTSIDE_PROCESS', `address space ${frame.asId} is unknown`)
    post({ type: 'stepFailed', step: 'prepare', error: error.toInfo() })
  } else if (frame.type === 'roundEnd') {
    rounds.end(frame)
  } else {
    if (frame.final) status.beQuiet()
    rounds.begin(frame)
  }
}
