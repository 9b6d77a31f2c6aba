import { performance } from 'node:perf_hooks'
import { groupProblems, readStat } from '@pageferry/checkpoint'
import { LazyMap } from '@pageferry/pages'
import type { Destination, Member } from './destination.js'
import { AddressSpace } from './lazy/address-space.js'
import type { FinalSets, RoundReceiver } from './rounds/receiver.js'
import { verifyReportOf } from './verify/report.js'

/** Restores the state that needs no page. Meanwhile the source scans the memory and sends the last pages. */
export function beginState({ images }: Destination, { process }: Member): void {
  process.skeleton.restorer.beginState(images)
}

/** The final pagemap has arrived; the last pages are under way. */
export function noteLazyPages(member: Member, sets: FinalSets): void {
  const { restorer, keeper } = member.process.skeleton
  const map = new LazyMap(sets.lazy.clone(), restorer.map.registered.clone())
  member.family = [AddressSpace.create(keeper, member.asId, restorer.uffd, { lazy: map, unsettled: [] })]
  member.verifier?.checkAbsent(restorer, sets)
}

/** Makes the skeleton the workload, frozen at the instruction where the original stands. */
export async function restore(destination: Destination, signal: AbortSignal): Promise<void> {
  const { members, phases, records, report, stored, images, root } = destination
  const all = [...members.values()]
  const finals = await Promise.all(all.map(({ rounds }) => (rounds as RoundReceiver).finalSets(signal)))
  const began = performance.now()
  await phases.run('reconcile', async () => {
    for (const [i, { verifier, process }] of all.entries()) {
      await verifier?.checkSkeleton(process.skeleton.restorer, finals[i], signal)
    }
  })
  report.verify = verifyReportOf(all)
  for (const [i, { process }] of all.entries()) {
    const { skeleton, nsPid } = process.skeleton.restorer
    stored?.storePages({ pid: skeleton.pid, memFd: skeleton.memFd, nsPid }, finals[i])
  }
  const verified = performance.now()
  await phases.run('restore', () => {
    for (const { process } of all) process.skeleton.restorer.finishState(images)
    root.freeze()
  })
  report.notMoved = groupProblems(all.flatMap(({ process }) => process.skeleton.restorer.notMoved))
  report.blackout.restoreMs = performance.now() - began // first value, for a successor, which does not see the rest
  const finalRounds = Object.fromEntries(
    all.map(({ asId, rounds }) => [asId, (rounds as RoundReceiver).round]),
  )
  records.saveRestore({ pid: root.pid, threads: readStat(root.pid).nrThreads, finalRounds, report })
  const ended = performance.now()
  report.blackout.restoreMs = ended - began
  destination.readyParts = { verifyMs: verified - began, stateMs: ended - verified }
}

/** Lets the workload run. Its first faults wait until the lazy phase starts, which is next. */
export function thaw({ root, report }: Destination): void {
  const began = performance.now()
  root.thaw()
  report.blackout.resumeMs = performance.now() - began
}
