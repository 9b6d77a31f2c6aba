import { toErrorInfo } from '@pageferry/base'
import type { GhostFiles } from '@pageferry/checkpoint'
import type { RoundFrame } from '@pageferry/migration'
import { WireError } from '@pageferry/wire'
import type { Destination } from '../destination.js'

/** Takes a frame of a round, which bypasses the machine: see destination-machine.ts. */
export function takeRoundFrame(
  destination: Pick<Destination, 'members' | 'root' | 'imageReceiver' | 'status' | 'post'>,
  frame: RoundFrame,
  payload: Uint8Array,
): void {
  const { members, root, imageReceiver, status, post } = destination
  if (frame.type === 'image') {
    imageReceiver.add(frame, payload)
    return
  }
  if (isGhostFrame(frame)) {
    try {
      takeGhost(root.skeleton.restorer.ghosts, frame, payload)
    } catch (error) {
      post({ type: 'stepFailed', step: 'prepare', error: toErrorInfo(error) })
    }
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

type GhostFrame = Extract<RoundFrame, { type: `ghost${string}` }>

function isGhostFrame(frame: RoundFrame): frame is GhostFrame {
  return frame.type === 'ghost' || frame.type === 'ghostData' || frame.type === 'ghostGone'
}

/** Files of the whole workload that have no name any more. */
function takeGhost(ghosts: GhostFiles, frame: GhostFrame, payload: Uint8Array): void {
  if (frame.type === 'ghost') ghosts.note(frame)
  else if (frame.type === 'ghostGone') ghosts.drop(frame.ghostId)
  else ghosts.write(frame.ghostId, frame.offset, frame.bytes, frame.hole ? null : payload)
}
