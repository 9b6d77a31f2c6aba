import { closeSync, openSync, readFileSync, readlinkSync } from 'node:fs'
import { PageferryError, pageOf } from '@pageferry/base'
import type { FileEntry, MmEntry } from '@pageferry/images'
import { fds, memory, pagemap } from '@pageferry/kernel'
import type { AreaMap } from '@pageferry/pages'
import type { CaptureContext } from '../capture-context.js'
import type { ProcStat } from '../proc/stat.js'
import type { CallBatch } from '../remote/call-batch.js'
import { scratchPages } from '../remote/scratch.js'
import type { SkeletonProcess } from '../remote/skeleton-process.js'
import type { OpenGhost } from './descriptors/kind.js'
import { type FileTable, requiredPath } from './file-table.js'
import { namedLink } from './ghosts/find.js'
import { lockedPages } from './memory-map/areas.js'
import { areasToVmas } from './memory-map/vmas.js'

/**
 * State that the kernel keeps beside the areas: brk, argv and environ, auxv, exe, dumpable (prctl(2) PR_SET_MM_MAP).
 */

const prGetDumpable = 3
const prSetDumpable = 4
const prSetMm = 35
const prSetMmMap = 14
const prSetThpDisable = 41
const noExeFd = 0xffff_ffff

/** Makes an entry for a round, before the final map is known: only the areas matter. */
export function mmOfRound(map: AreaMap, files: FileTable): MmEntry {
  const zero = {
    mmStartCode: 0n,
    mmEndCode: 0n,
    mmStartData: 0n,
    mmEndData: 0n,
    mmStartStack: 0n,
    mmStartBrk: 0n,
    mmBrk: 0n,
    mmArgStart: 0n,
    mmArgEnd: 0n,
    mmEnvStart: 0n,
    mmEnvEnd: 0n,
  }
  return {
    ...zero,
    exeFileId: 0,
    mmSavedAuxv: [],
    vmas: areasToVmas(map, files),
    aios: [],
    memoryPolicies: [],
  }
}

/** Facts that only the process itself can find out, in any of its threads. */
export interface AddressSpaceAnswers {
  brk: bigint
  dumpable: number
}

/** @returns the answers, once the batch has run */
export function askAddressSpace(batch: CallBatch): () => AddressSpaceAnswers {
  const brk = batch.add('brk', 0)
  const dumpable = batch.add('prctl', prGetDumpable, 0, 0, 0, 0)
  return () => ({ brk: brk(), dumpable: Number(dumpable()) })
}

export function dumpAddressSpace(
  { pid, status }: CaptureContext,
  { brk, dumpable }: AddressSpaceAnswers,
  stat: ProcStat,
  map: AreaMap,
  files: FileTable,
  futureLocks: number,
): MmEntry {
  const auxv = readFileSync(`/proc/${pid}/auxv`)
  const saved: bigint[] = []
  for (let at = 0; at + 8 <= auxv.length; at += 8) saved.push(auxv.readBigUInt64LE(at))
  const exe = namedLink(`/proc/${pid}/exe`)
  return {
    mmStartCode: stat.startCode,
    mmEndCode: stat.endCode,
    mmStartData: stat.startData,
    mmEndData: stat.endData,
    mmStartStack: stat.startStack,
    mmStartBrk: stat.startBrk,
    mmBrk: brk,
    mmArgStart: stat.argStart,
    mmArgEnd: stat.argEnd,
    mmEnvStart: stat.envStart,
    mmEnvEnd: stat.envEnd,
    exeFileId: files.mappedFile(exe.path, `exe:${exe.ghost ?? exe.path}`, 0, exe.ghost),
    mmSavedAuxv: saved,
    vmas: areasToVmas(map, files),
    dumpable,
    aios: [],
    memoryPolicies: [],
    thpDisabled: !status.thpEnabled,
    mlockall: futureLocks === 0 ? undefined : futureLocks,
  }
}

/**
 * Finds out the mlockall(2) setting for future areas. The kernel shows it nowhere, but our scratch area was mapped
 * under it. Call it before the scratch area is used: if the kernel filled it at once, MCL_ONFAULT is off.
 */
export function dumpFutureLocks({ pid, process, status }: CaptureContext, map: AreaMap): number {
  if (status.lockedPages !== lockedPages(map) + scratchPages) return 0
  const pagemapFd = openSync(`/proc/${pid}/pagemap`, 'r')
  try {
    const entry = new BigUint64Array(1)
    pagemap.read(pagemapFd, pageOf(process.scratch), 1, entry)
    return memory.MCL_FUTURE | ((entry[0] & pagemap.PM_PRESENT) === 0n ? memory.MCL_ONFAULT : 0)
  } finally {
    closeSync(pagemapFd)
  }
}

/** After this we must not map anything for ourselves. */
export function restoreFutureLocks(skeleton: SkeletonProcess, mm: MmEntry): void {
  if (mm.mlockall !== undefined && mm.mlockall !== 0) skeleton.queue(skeleton.pid, 'mlockall', [mm.mlockall])
}

/**
 * PR_SET_MM_MAP checks that the areas exist, so the map must be final, and the old executable must not be mapped. It
 * comes before the descriptors: the workload's table may have no room for the executable's.
 */
export function restoreAddressSpace(
  skeleton: SkeletonProcess,
  mm: MmEntry,
  files: FileEntry[],
  openGhost: OpenGhost,
): void {
  const exePath = requiredPath(files, mm.exeFileId, 'the executable')
  const { pid } = skeleton
  const ghost = openGhost(mm.exeFileId, 0)
  // A skeleton of a skeleton (rehearsal.ts) has its link already. The kernel refuses to replace a file by itself while
  // it is mapped.
  const isOwn = ghost === undefined && readlinkSync(`/proc/${pid}/exe`) === exePath
  const exeFd = ghost === undefined ? skeleton.freeFd : skeleton.lend(ghost)
  if (!isOwn && ghost === undefined) {
    const path = skeleton.put(Buffer.from(`${exePath}\0`))
    skeleton.queue(pid, 'open', [path, fds.O_CLOEXEC, 0], { expected: BigInt(exeFd) })
  }
  const auxv = Buffer.alloc(mm.mmSavedAuxv.length * 8)
  for (const [i, word] of mm.mmSavedAuxv.entries()) auxv.writeBigUInt64LE(word, i * 8)
  const fields = [
    mm.mmStartCode,
    mm.mmEndCode,
    mm.mmStartData,
    mm.mmEndData,
    mm.mmStartBrk,
    mm.mmBrk,
    mm.mmStartStack,
    mm.mmArgStart,
    mm.mmArgEnd,
    mm.mmEnvStart,
    mm.mmEnvEnd,
  ]
  // struct prctl_mm_map: eleven u64, auxv pointer, auxv_size u32, exe_fd u32 (linux/prctl.h)
  const map = Buffer.alloc(104)
  for (const [i, field] of fields.entries()) map.writeBigUInt64LE(field, i * 8)
  map.writeBigUInt64LE(skeleton.put(auxv), 88)
  map.writeUInt32LE(auxv.length, 96)
  map.writeUInt32LE(isOwn ? noExeFd : exeFd, 100)
  skeleton.queue(pid, 'prctl', [prSetMm, prSetMmMap, skeleton.put(map), map.length, 0], {
    explain: (errno) =>
      new PageferryError('KERNEL', `prctl(PR_SET_MM_MAP) failed with errno ${errno} (exe ${exePath})`),
  })
  if (!isOwn) skeleton.queue(pid, 'close', [exeFd])
  if (mm.thpDisabled === true) skeleton.queue(pid, 'prctl', [prSetThpDisable, 1, 0, 0, 0])
}

/** A change of credentials resets it, so it comes after them. Only 0 and 1 can be set (prctl(2)). */
export function restoreDumpable(skeleton: SkeletonProcess, mm: MmEntry): void {
  if (mm.dumpable === 0 || mm.dumpable === 1)
    skeleton.queue(skeleton.pid, 'prctl', [prSetDumpable, mm.dumpable, 0, 0, 0])
}
