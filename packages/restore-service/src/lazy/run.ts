import { Heir, type KeeperClient } from '@pageferry/kernel'
import type { Destination } from '../destination.js'
import { appointHeir, dismissHeir, inheritSpaces } from './heir.js'
import { type LazyMember, LazyPhase } from './phase.js'

/** Runs from the resume until no page is lazy, or until the last process of the tree ends. */
export async function runLazyPhase(destination: Destination, signal: AbortSignal): Promise<void> {
  const { members, spec, log, lanes, status, phases, root, report } = destination
  const { keeper } = root
  if (keeper === null) return
  const takenOver = [...members.values()].every(({ family }) => family === null)
  if (takenOver) takeOver(destination, keeper)
  const lazyMembers = lazyMembersOf(destination)
  const totalPages = [...lazyMembers.values()]
    .flatMap(({ spaces }) => spaces)
    .reduce((sum, { lazy }) => sum + lazy.pendingCount, 0)
  const phase = new LazyPhase({
    members: lazyMembers,
    takenOver,
    prefetch: spec.request.prefetch !== false,
    log,
    onProgress: (pendingPages, faults, installedPages) => {
      lanes.send({ type: 'progress', pendingPages, faults, installedPages })
      status.show({ phase: 'postcopy', pendingPages, totalPages })
    },
    onForkRead: () => phases.reach('fork-event'),
    freezer: root,
    lane: lanes.fault,
  })
  destination.lazy = phase
  lanes.fault.receive(phase)
  const running = phase.run(signal)
  status.speak()
  for (const [asId, { spaces, round, verifier }] of lazyMembers) {
    const { uffd, gate } = spaces[0]
    if (gate === null) continue
    const target = { kind: 'lazy', asId, round, uffd, gate: gate.buffer, hashLog: verifier?.lazyLog } as const
    lanes.bulk.openLazy(target, phase)
  }
  for (const [asId, { process }] of lazyMembers) {
    if (process.exit !== undefined) phase.processGone(asId)
  }
  await running
  Object.assign(report, phase.report)
  phase.release()
  if (destination.heir !== null) dismissHeir(keeper, destination.heir)
  for (const { process } of members.values()) process.restorer?.skeleton.close()
}

/** Takes over from a worker that was killed in the lazy phase, or between Commit and it. */
function takeOver(destination: Destination, keeper: KeeperClient): void {
  const families = inheritSpaces(keeper, destination.log)
  for (const [asId, member] of destination.members) member.family = families.get(asId) ?? null
  destination.heir = Heir.start()
  appointHeir(keeper, destination.heir)
}

function lazyMembersOf({ members, records }: Destination): Map<number, LazyMember> {
  const lazyMembers = new Map<number, LazyMember>()
  for (const [asId, { family, verifier, process }] of members) {
    if (family === null) continue
    lazyMembers.set(asId, { spaces: family, round: records.finalRound(asId) + 1, verifier, process })
  }
  return lazyMembers
}
