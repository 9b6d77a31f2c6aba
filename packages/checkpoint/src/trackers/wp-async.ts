import { closeSync, openSync } from 'node:fs'
import type { RunTable } from '@pageferry/base'
import { addressOf, isKernelError, pageBytes } from '@pageferry/base'
import { fds, pagemap, uffd } from '@pageferry/kernel'
import type { Area, AreaMap } from '@pageferry/pages'
import { StoppedProcess } from '../remote/stopped-process.js'
import { takeFd } from '../remote/workload-thread.js'
import { noteThere, walkArea } from './pagemap-walk.js'
import { emptyScan, type MemoryScan, scanSharedMemory, type Tracker, trackedAreas } from './tracker.js'

const { O_CLOEXEC, O_NONBLOCK } = fds

/**
 * Asynchronous write protection: a userfaultfd of the workload's address space, whose descriptor we take over. The
 * kernel lifts the protection of a page on the first write and remembers it; the writing thread does not wait
 * (Documentation/admin-guide/mm/userfaultfd.rst, UFFD_FEATURE_WP_ASYNC). The tracking ends with the descriptor, and so
 * also when this process dies.
 */
export class WpAsyncTracker implements Tracker {
  readonly kind = 'wp-async'
  readonly #pid: number
  readonly #uffd: number
  readonly #pagemap: number

  private constructor(pid: number, uffdFd: number) {
    this.#pid = pid
    this.#uffd = uffdFd
    this.#pagemap = openSync(`/proc/${pid}/pagemap`, 'r')
  }

  static open(pid: number): WpAsyncTracker {
    const stopped = StoppedProcess.stop(pid, 'one')
    let fd: number
    try {
      const take = (theirs: number): number => takeFd(stopped.pidfd, theirs)
      try {
        fd = stopped.leader.callFd(take, 'userfaultfd', O_CLOEXEC | O_NONBLOCK)
      } catch (error) {
        if (!isKernelError(error, 'EPERM')) throw error
        // The workload is not root (vm.unprivileged_userfaultfd = 0). Write protection sees the kernel's writes all the
        // same.
        fd = stopped.leader.callFd(take, 'userfaultfd', O_CLOEXEC | O_NONBLOCK | uffd.UFFD_USER_MODE_ONLY)
      }
    } finally {
      stopped.resume()
    }
    uffd.api(
      fd,
      uffd.UFFD_FEATURE_WP_ASYNC | uffd.UFFD_FEATURE_WP_UNPOPULATED | uffd.UFFD_FEATURE_PAGEFAULT_FLAG_WP,
    )
    return new WpAsyncTracker(pid, fd)
  }

  scan(map: AreaMap): MemoryScan {
    const scan: MemoryScan = emptyScan()
    for (const area of trackedAreas(map)) {
      if (area.kind === 'shared-anon') scanSharedMemory(this.#pid, area, scan)
      else this.#scanArea(area, scan)
    }
    return scan
  }

  /**
   * Registers every area at every scan. For a registered area that does nothing. Memory that was mapped since then has
   * no protected page yet, so all of it is reported as written.
   *
   * When the area changes between the two calls, CHECK_WPASYNC fails the scan. Pages that it had protected by then are
   * no longer known as written, so everything there counts as written.
   */
  #scanArea(area: Area, scan: MemoryScan): void {
    const { written } = scan
    if (this.#register(area)) {
      try {
        const flags = pagemap.PM_SCAN_WP_MATCHING | pagemap.PM_SCAN_CHECK_WPASYNC
        walkArea(this.#pagemap, area, flags, scan, (first, nr, categories) => {
          noteThere(scan, first, nr, categories)
          if ((categories & pagemap.PAGE_IS_WRITTEN) !== 0) written.addRange(first, nr)
        })
        return
      } catch (error) {
        if (!isKernelError(error, 'EPERM')) throw error
      }
    }
    walkArea(this.#pagemap, area, 0, scan, (first, nr, categories) => {
      noteThere(scan, first, nr, categories)
      written.addRange(first, nr)
    })
  }

  #register(area: Area): boolean {
    const length = BigInt(area.nrPages * pageBytes)
    try {
      uffd.register(this.#uffd, addressOf(area.start), length, uffd.UFFDIO_REGISTER_MODE_WP)
      return true
    } catch (error) {
      // EPERM, EINVAL: the kernel refuses such an area. ENOMEM, EINVAL: it is gone again.
      if (isKernelError(error, 'EPERM', 'EINVAL', 'ENOMEM', 'EBUSY')) return false
      throw error
    }
  }

  noteRead(_runs: RunTable, _nrRuns: number, _data: Uint8Array): void {}

  close(): void {
    closeSync(this.#uffd)
    closeSync(this.#pagemap)
  }
}
