import { closeSync, readlinkSync } from 'node:fs'
import { constants } from 'node:os'
import { isKernelError } from '@pageferry/base'
import { addon } from './addon.js'
import * as fds from './fds.js'

interface Binding {
  start(): { pid: number; pidfd: number }
  arm(pidfd: number, witness: number): void
}

const native = addon.heir as Binding

/**
 * A process that shares this one's descriptor table and owns it alone after kill -9. Then it keeps the userfaultfds
 * open and closes everything else. See native/heir.c.
 *
 * A userfaultfd that is open and not served stops every thread that touches its memory, so an heir must never be
 * forgotten. Until `arm` it ends with its process. Afterwards it ends by `end`, or when the witness hangs up.
 */
export class Heir {
  readonly pidfd: number
  #witness = -1

  /** Takes the heir of a process that has died, or one that `start` has made. */
  constructor(pidfd: number) {
    this.pidfd = pidfd
  }

  /**
   * Starts an heir of this process. It takes some milliseconds, and each page that is written afterwards costs one page
   * fault. Do not call it while the workload waits.
   */
  static start(): Heir {
    return new Heir(native.start().pidfd)
  }

  /**
   * Makes the heir outlive its process. Call it once the keeper has the pidfd, so that a successor can find the heir.
   * @param witness a connected socket; a duplicate is kept open, because the heir knows it by its number
   */
  arm(witness: number): void {
    this.#witness = fds.dup(witness)
    native.arm(this.pidfd, this.#witness)
  }

  /**
   * Returns a duplicate of the dead process's userfaultfd `number`; undefined when it has none there, or the heir is
   * gone.
   */
  takeUserfaultfd(number: number): number | undefined {
    let fd: number
    try {
      fd = fds.pidfdGetfd(this.pidfd, number)
    } catch (error) {
      if (isKernelError(error, 'EBADF', 'ESRCH')) return undefined
      throw error
    }
    if (readlinkSync(`/proc/self/fd/${fd}`) === 'anon_inode:[userfaultfd]') return fd
    closeSync(fd)
    return undefined
  }

  /** Ends the heir, and closes the files that it alone holds. */
  end(): void {
    try {
      fds.pidfdSendSignal(this.pidfd, constants.signals.SIGKILL)
    } catch (error) {
      if (!isKernelError(error, 'ESRCH')) throw error
    }
    closeSync(this.pidfd)
    if (this.#witness >= 0) closeSync(this.#witness)
  }
}
