import { addressOf, pageBytes } from '@pageferry/base'
import { memory } from '@pageferry/kernel'
import type { RemoteCall } from '../../remote/skeleton-process.js'

/** Advice that outlasts the call (madvise(2)): as the kernel shows it, as a bit set by MADV_ number, and as calls. */

/** VmFlags letters (proc_pid_smaps(5)), the advice that they show, and the advice that revokes it. */
const advice: readonly { flag: string; on: number; off: number | null }[] = [
  { flag: 'rr', on: memory.MADV_RANDOM, off: memory.MADV_NORMAL },
  { flag: 'sr', on: memory.MADV_SEQUENTIAL, off: memory.MADV_NORMAL },
  { flag: 'dc', on: memory.MADV_DONTFORK, off: memory.MADV_DOFORK },
  { flag: 'mg', on: memory.MADV_MERGEABLE, off: memory.MADV_UNMERGEABLE },
  { flag: 'hg', on: memory.MADV_HUGEPAGE, off: memory.MADV_NOHUGEPAGE },
  { flag: 'nh', on: memory.MADV_NOHUGEPAGE, off: memory.MADV_HUGEPAGE },
  { flag: 'dd', on: memory.MADV_DONTDUMP, off: memory.MADV_DODUMP },
  { flag: 'wf', on: memory.MADV_WIPEONFORK, off: memory.MADV_KEEPONFORK },
]

/** The advice as the bit set in CRIU's vma entries. */
export function adviceOf(vmFlags: ReadonlySet<string>): number {
  return advice.reduce((set, { flag, on }) => (vmFlags.has(flag) ? set | (1 << on) : set), 0)
}

/** Calls that turn the advice `from` into the advice `to`. */
export function adviseCalls(first: number, nr: number, from: number, to: number): RemoteCall[] {
  const calls: RemoteCall[] = []
  const advise = (value: number): void => {
    calls.push({ name: 'madvise', args: [addressOf(first), nr * pageBytes, value] })
  }
  for (const { on, off } of advice) {
    const was = (from & (1 << on)) !== 0
    const is = (to & (1 << on)) !== 0
    if (was && !is && off !== null && (to & (1 << off)) === 0) advise(off)
  }
  for (const { on } of advice) {
    if ((to & (1 << on)) !== 0 && (from & (1 << on)) === 0) advise(on)
  }
  return calls
}
