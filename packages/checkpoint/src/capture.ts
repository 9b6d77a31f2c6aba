import { PageferryError } from '@pageferry/base'
import { type CoreEntry, encodeImage, IMG_VERSION, imageFileName, Lsm, type MmEntry } from '@pageferry/images'
import type { AreaMap, PageSet } from '@pageferry/pages'
import type { CaptureContext } from './capture-context.js'
import { askAddressSpace, dumpAddressSpace, dumpFutureLocks } from './kinds/address-space.js'
import { askLeftBehind } from './kinds/attributes/left-behind.js'
import { dumpAreaPolicies } from './kinds/attributes/memory-policy.js'
import { askProcessRefusals, askThreadRefusals } from './kinds/attributes/refused.js'
import { clocksOf, monotonicOffset, toTimens } from './kinds/clocks.js'
import { DumpedFiles } from './kinds/descriptors/open-files.js'
import { dumpTable } from './kinds/descriptors/table.js'
import type { FileTable } from './kinds/file-table.js'
import { dumpFs } from './kinds/fs.js'
import { guardsToVmas } from './kinds/guard-regions.js'
import { neverLazyPages } from './kinds/never-lazy.js'
import { askProcess, dumpProcessState } from './kinds/process-state.js'
import { askThread, dumpThread } from './kinds/threads.js'
import { settleOverruns } from './kinds/timer-overruns.js'
import type { Bystanders } from './probe.js'
import type { Problem } from './problems.js'
import type { FdInfo } from './proc/fdinfo.js'
import { readStat } from './proc/stat.js'
import { readStatus } from './proc/status.js'
import { CallBatch } from './remote/call-batch.js'
import type { StoppedProcess } from './remote/stopped-process.js'

export interface NamedImage {
  /** File name as in CRIU. */
  name: string
  bytes: Uint8Array
}

export interface CapturedProcess {
  /** All images except the memory map's. */
  images: NamedImage[]
  /** The image of the memory map. It comes later, because the scan of the memory finds the guard regions. */
  mapImage(guards: PageSet): NamedImage
  /** Pages that must be present when the process resumes. */
  neverLazy: PageSet
  /** Parts that stay behind, with reasons. `leftBehind` finds more of them, from outside. */
  notMoved: Problem[]
}

/** Facts from before the freeze. */
export interface CaptureOptions {
  /** With them each thread is asked whether it is confined. */
  bystanders?: Bystanders
  /** False: neither a thread nor an area has had a NUMA policy, so the areas are not asked. */
  memoryPolicies?: boolean
}

/** Ids of the kernel objects of a single process, which shares none of them. */
const ownIds = { vmId: 1, filesId: 1, fsId: 1, sighandId: 1 }

/**
 * Everything about the stopped process except the contents of its memory, as image files. Its threads stay stopped. The
 * caller ends the injection of calls.
 *
 * @param descriptors read when it was stopped
 * @throws WORKLOAD_CHANGED for an obstacle that came after the preflight
 */
export function captureProcess(
  process: StoppedProcess,
  map: AreaMap,
  descriptors: FdInfo[],
  files: FileTable,
  { bystanders, memoryPolicies = true }: CaptureOptions = {},
): CapturedProcess {
  const { pid } = process
  const status = readStatus(pid)
  const context: CaptureContext = { pid, process, status, monotonicOffsetNs: monotonicOffset(pid) }
  const stat = readStat(pid)
  const nsPid = status.nsTgid
  const futureLocks = dumpFutureLocks(context, map)
  settleOverruns(context)
  const cores = new Map<number, CoreEntry>()
  const askedProcess = new CallBatch(process, process.leader, status)
  const processAnswers = askProcess(context, askedProcess)
  const addressSpaceAnswers = askAddressSpace(askedProcess)
  const ldt = askProcessRefusals(askedProcess, pid)
  const leftBehind = askLeftBehind(askedProcess)
  for (const thread of process.threads) {
    const nsTid = thread.status.nsPids.at(-1) ?? thread.tid
    // The leader has one run for both kinds of questions.
    const batch = thread === process.leader ? askedProcess : new CallBatch(process, thread, status)
    const threadAnswers = askThread(batch)
    const bystander = bystanders?.pidFor(thread.status)
    const refused = bystander === undefined ? () => [] : askThreadRefusals(batch, thread.tid, bystander)
    batch.run()
    refuse(refused())
    if (thread === process.leader) refuse(ldt())
    cores.set(nsTid, dumpThread(context, thread, threadAnswers()))
  }
  const neverLazy = neverLazyPages(context, cores.values(), stat, map)
  const leader = cores.get(nsPid)
  if (leader !== undefined) {
    leader.tc = dumpProcessState(context, processAnswers(), stat)
    leader.ids = ownIds
  }
  files.forgetOpenFiles()
  const openFiles = new DumpedFiles(files, descriptors, context.monotonicOffsetNs)
  const fdinfo = dumpTable({ pid, pidfd: process.pidfd, infos: descriptors }, openFiles)
  const fs = dumpFs(context, files)
  const mm = dumpAddressSpace(context, addressSpaceAnswers(), stat, map, files, futureLocks)
  if (memoryPolicies) mm.memoryPolicies = dumpAreaPolicies(context, map)
  const tids = [...cores.keys()]
  const named = (kind: Parameters<typeof imageFileName>[0], bytes: Uint8Array, id?: number): NamedImage => ({
    name: imageFileName(kind, id),
    bytes,
  })
  const images = [
    named(
      'inventory',
      encodeImage('inventory', {
        imgVersion: IMG_VERSION,
        fdinfoPerId: true,
        rootIds: ownIds,
        lsmtype: Lsm.NO_LSM,
      }),
    ),
    named('pstree', encodeImage('pstree', [{ pid: nsPid, ppid: 0, pgid: nsPid, sid: nsPid, threads: tids }])),
    ...[...cores].map(([tid, core]) => named('core', encodeImage('core', core), tid)),
    named('ids', encodeImage('ids', ownIds), nsPid),
    named('fdinfo', encodeImage('fdinfo', fdinfo), ownIds.filesId),
    named('fs', encodeImage('fs', fs), nsPid),
    ...filesImages(files),
    ...openFiles.images.map(([kind, messages]) => named(kind, encodeImage(kind, messages as never))),
    named('timens', encodeImage('timens', toTimens(clocksOf(pid))), 0),
  ]
  const mapImage = (guards: PageSet): NamedImage =>
    mmImage(nsPid, { ...mm, vmas: [...mm.vmas, ...guardsToVmas(guards)] })
  return { images, mapImage, neverLazy, notMoved: leftBehind() }
}

function refuse([first]: Problem[]): void {
  if (first !== undefined) throw new PageferryError('WORKLOAD_CHANGED', `${first.what}: ${first.reason}`)
}

export function mmImage(nsPid: number, mm: MmEntry): NamedImage {
  return { name: imageFileName('mm', nsPid), bytes: encodeImage('mm', mm) }
}

export function filesImages(files: FileTable): NamedImage[] {
  return [
    { name: imageFileName('files'), bytes: encodeImage('files', files.entries()) },
    { name: imageFileName('remap-fpath'), bytes: encodeImage('remap-fpath', files.remaps()) },
  ]
}
