import { pageBytes, pageOf } from '@pageferry/base'
import { type CoreEntry, entryToRegs } from '@pageferry/images'
import { type AreaMap, carriesPages, PageSet } from '@pageferry/pages'
import type { CaptureContext } from '../capture-context.js'
import type { ProcStat } from '../proc/stat.js'
import { timeAddress, timeBytes } from '../remote/waits.js'

/** Pages that must be present when the process resumes. */

const robustListHeadBytes = 24

/** @param cores of all threads */
export function neverLazyPages(
  context: CaptureContext,
  cores: Iterable<CoreEntry>,
  stat: ProcStat,
  map: AreaMap,
): PageSet {
  const pages = new PageSet()
  for (const core of cores) {
    for (const address of untouchableAddresses(context, core)) pages.addRange(pageOf(address), 1)
  }
  for (const [first, nr] of shownPages(stat)) pages.addRange(first, nr)
  return pages.intersect(map.pages(carriesPages))
}

/**
 * Addresses that the kernel touches itself when threads run or exit, without a fault that it could wait for: thread
 * pointers, rseq areas, tid words, robust lists with their futexes, stacks, instructions.
 */
function untouchableAddresses({ process }: CaptureContext, core: CoreEntry): bigint[] {
  const regs = core.threadInfo?.gpregs
  const thread = core.threadCore
  if (regs === undefined || thread === undefined) return []
  const addresses = [
    regs.ip,
    regs.fsBase,
    regs.fsBase - 4096n,
    regs.fsBase + 4096n,
    core.threadInfo?.clearTidAddr ?? 0n,
  ]
  // Covers the red zone, a signal frame, the timespec of an interrupted sleep, and pushes of the next calls.
  for (let below = -8192n; below <= 4096n; below += 4096n) addresses.push(regs.sp + below)
  // The timeout of a wait is written there when the process is let go.
  const timeout = thread.waitDeadlineNs === undefined ? null : timeAddress(entryToRegs(regs))
  if (timeout !== null) addresses.push(timeout, timeout + BigInt(timeBytes - 1))
  if (thread.rseqEntry !== undefined) addresses.push(thread.rseqEntry.rseqAbiPointer)
  if (thread.futexRla !== 0n)
    addresses.push(...robustListAddresses(process.read.bind(process), thread.futexRla))
  return addresses.filter((address) => address > 0n)
}

/** ROBUST_LIST_LIMIT in the kernel */
const maxRobustNodes = 2048

function robustListAddresses(read: (address: bigint, length: number) => Buffer, head: bigint): bigint[] {
  const addresses = [head]
  try {
    // struct robust_list_head: list.next, futex_offset, list_op_pending (linux/futex.h); bit 0 marks PI futexes.
    const bytes = read(head, robustListHeadBytes)
    const offset = bytes.readBigInt64LE(8)
    const note = (node: bigint): void => {
      addresses.push(node, node + offset)
    }
    const pending = bytes.readBigUInt64LE(16) & ~1n
    if (pending !== 0n) note(pending)
    let node = bytes.readBigUInt64LE(0) & ~1n
    for (let i = 0; i < maxRobustNodes && node !== head && node !== 0n; i++) {
      note(node)
      node = read(node, 8).readBigUInt64LE(0) & ~1n
    }
  } catch {
    // The kernel cannot follow such a list either.
  }
  return addresses
}

/** Limit for arguments and for environment: exec allows 6 MiB for both together (3/4 of _STK_LIM, fs/exec.c). */
const maxShownPages = (6 << 20) / pageBytes

/**
 * Arguments and environment, as [first page, number of pages]. A reader of /proc/PID/cmdline or environ (ps, or the
 * program itself) gets nothing for a missing page: the kernel does not wait for a userfault there.
 */
function shownPages({ argStart, argEnd, envStart, envEnd }: ProcStat): [first: number, nr: number][] {
  return [
    [argStart, argEnd],
    [envStart, envEnd],
  ].flatMap(([start, end]) => {
    if (start === 0n || end <= start) return []
    const first = pageOf(start)
    return [[first, Math.min(pageOf(end - 1n) - first + 1, maxShownPages)]]
  })
}
