import { MiB, toErrorInfo } from '@pageferry/base'
import { rehearse } from '@pageferry/checkpoint'
import { Heir } from '@pageferry/kernel'
import type { FrameOf } from '@pageferry/wire'
import { checkAdmission, clockOffsets } from './admission.js'
import type { Destination } from './destination.js'
import { holdSkeleton } from './lazy/adopt.js'
import { appointHeir } from './lazy/heir.js'
import { beginState, noteLazyPages } from './restore.js'
import { RoundReceiver } from './rounds/receiver.js'
import { verifierFor } from './verify/verifier.js'

/**
 * Refuses everything that this host can refuse. Afterwards there is an empty skeleton, and the rounds may come.
 *
 * @throws as checkAdmission does
 */
export async function prepare(
  destination: Destination,
  begin: FrameOf<'begin'>,
  signal: AbortSignal,
): Promise<void> {
  const { spec, channel, lanes, records, inbox, root, phases } = destination
  checkAdmission(begin)
  // Start it before the rehearsal, whose one pass then touches the pages that the freeze will write; in a spare worker
  // too.
  const heir = Heir.start()
  destination.heir = heir
  // The rehearsal also proves that this host can restore, before the workload is touched.
  await rehearse(`${spec.stateDir}/rehearsal`, 'restore', channel.isRehearsed ? { passes: 1 } : {})
  signal.throwIfAborted()
  const offsets = await clockOffsets(begin, () => {
    lanes.send({ type: 'clockRequest' })
    return inbox.next('clockReply', signal)
  })
  const { asId, pid: nsPid, comm, tids, verify } = begin
  const verifier = verifierFor(destination, asId, verify)
  verifier?.createLog()
  await records.keep({ asIds: [asId], comm, threads: tids.length, verify })
  const { restorer, keeper } = await root.create({
    id: spec.id,
    nsPid,
    newPidNamespace: spec.request.newPidNamespace === true,
    ghostBytes: (spec.request.ghostLimitMiB ?? 0) * MiB,
    clockOffsets: offsets,
  })
  appointHeir(keeper, heir)
  holdSkeleton(keeper, asId, restorer.uffd)
  records.createFile()
  const rounds = new RoundReceiver(
    { restorer, asId, hashLog: verifier?.roundLog },
    destination.images,
    lanes.bulk,
    {
      onRoundApplied: (frame) => lanes.send(frame),
      onFinalMap: () => beginState(destination, member),
      onFinalPagemap: (sets) => noteLazyPages(member, sets),
      onRoundFailed: (error) =>
        destination.post({ type: 'stepFailed', step: 'prepare', error: error.toInfo() }),
    },
  )
  const member = { asId, process: root, rounds, verifier, family: null }
  destination.members.set(asId, member)
  phases
    .run('receive', () => rounds.finalSets(signal))
    .catch((cause: unknown) => {
      if (signal.aborted) return
      destination.post({ type: 'stepFailed', step: 'prepare', error: toErrorInfo(cause) })
    })
}
