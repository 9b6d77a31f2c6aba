import { closeSync, openSync } from 'node:fs'
import { performance } from 'node:perf_hooks'
import { addressOf, isKernelError, type Logger, pageBytes, pageOf } from '@pageferry/base'
import { type ProcSyscall, readStatus, readSyscall, readTids, SYS } from '@pageferry/checkpoint'
import { pagemap, uffd } from '@pageferry/kernel'
import type { RestoredProcess } from '../process.js'
import type { AddressSpace, Fault } from './address-space.js'

const MREMAP_MAYMOVE = 1n
const MREMAP_FIXED = 2n

/**
 * How long a fault must be deferred before a look, and the time between two looks. A look reads a file of each thread.
 */
const patienceMs = 50
/** The kernel fills 1 GiB in less than a second. */
const fillTimeoutMs = 10_000
const fillPollMs = 0.1

/**
 * Frees threads that enlarge and move locked memory (mlock) with mremap(2). The kernel fills the new part (mm_populate)
 * before it queues the event of the move. No page can be installed until that event was read (do_mremap in mm/mremap.c,
 * Linux 6.18). So the thread waits for a page that it blocks itself, and it blocks all other threads too.
 *
 * Nothing lazy is in the new part, so it leaves the userfaultfd until the kernel has filled it. It must return soon:
 * until then the mapping consists of two areas, and mremap refuses two. The workload cannot reach its next mremap
 * before the event of this one was read.
 */
export class MlockedMremap {
  readonly #process: Pick<RestoredProcess, 'pid'>
  readonly #log: Logger
  #lookedAt = Number.NEGATIVE_INFINITY

  constructor(process: Pick<RestoredProcess, 'pid'>, log: Logger) {
    this.#process = process
    this.#log = log
  }

  /** Answers deferred faults of such threads. Works only for the workload itself: the pid of a child is not known. */
  letGo(space: AddressSpace): void {
    const now = performance.now()
    if (now - Math.max(space.waitsSince ?? now, this.#lookedAt) < patienceMs) return
    this.#lookedAt = now
    space.dropDeferred((fault) => this.#letGo(space, fault))
  }

  #letGo({ uffd: fd, lazy }: AddressSpace, { page, tid }: Fault): boolean {
    try {
      const nrPages = newPagesFrom(page, this.#callOf(tid))
      let nrPending = 0
      lazy.forEachPendingIn(page, nrPages, (_source, nr) => {
        nrPending += nr
      })
      if (nrPages === 0 || nrPending > 0) return false
      const range = [addressOf(page), addressOf(nrPages)] as const
      uffd.unregister(fd, ...range)
      if (this.#isFilledSoon(page + nrPages - 1)) {
        uffd.register(fd, ...range, uffd.UFFDIO_REGISTER_MODE_MISSING)
      } else {
        this.#log.warn(
          { page, nrPages },
          'enlarged memory is two areas until all pages are there: the kernel takes long to fill it',
        )
      }
      return true
    } catch (error) {
      // The thread was killed, and its memory is gone.
      if (isKernelError(error, 'ENOENT', 'ESRCH', 'EINVAL', 'ENOMEM')) return false
      throw error
    }
  }

  /**
   * Waits for the last page, since the kernel fills upwards. This blocks the worker, which could install nothing
   * meanwhile.
   */
  #isFilledSoon(lastPage: number): boolean {
    const fd = openSync(`/proc/${this.#process.pid}/pagemap`, 'r')
    const entry = new BigUint64Array(1)
    const never = new Int32Array(new SharedArrayBuffer(4))
    const deadline = performance.now() + fillTimeoutMs
    try {
      for (;;) {
        pagemap.read(fd, lastPage, 1, entry)
        if ((entry[0] & (pagemap.PM_PRESENT | pagemap.PM_SWAPPED)) !== 0n) return true
        if (performance.now() > deadline) return false
        Atomics.wait(never, 0, 0, fillPollMs)
      }
    } finally {
      closeSync(fd)
    }
  }

  /** @param tid the thread's own view, which may be in a pid namespace below ours */
  #callOf(tid: number): ProcSyscall | null {
    const { pid } = this.#process
    const task = readTids(pid).find((each) => readStatus(pid, each).nsPids.at(-1) === tid)
    return task === undefined ? null : readSyscall(pid, task)
  }
}

/**
 * Returns how many pages the thread's mremap adds, if its fault at the first of them can only be the kernel's;
 * otherwise 0. mremap(2) touches memory for no other reason.
 */
export function newPagesFrom(page: number, call: ProcSyscall | null): number {
  if (call?.nr !== SYS.mremap) return 0
  const [oldAddress, oldLength, newLength, flags, newAddress] = call.args
  const first = pageCount(oldAddress)
  const nrOld = pageCount(oldLength)
  const nrNew = pageCount(newLength) - nrOld
  // A mapping that is not moved has no event to wait for. A length of 0 makes a second mapping and enlarges nothing.
  if (nrNew <= 0 || nrOld === 0 || (flags & MREMAP_MAYMOVE) === 0n) return 0
  const isThere =
    (flags & MREMAP_FIXED) === 0n
      ? page < first || page >= first + nrOld
      : page === pageCount(newAddress) + nrOld
  return isThere ? nrNew : 0
}

/** For an address, which is a multiple of the page size, the page number; for a length, the pages that it begins. */
function pageCount(bytes: bigint): number {
  return pageOf(bytes + BigInt(pageBytes - 1))
}
