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
 * A process that shares this one's descriptor table and has it alone after kill -9: then it keeps the userfaultfds open
 * and closes everything else. See native/heir.c.
 *
 * A userfaultfd that is open somewhere and served nowhere stops whoever touches its memory, so an heir must never be
 * forgotten: until `arm` it ends with its process, and afterwards when it is ended, or when the witness hangs up.
 */
export class Heir {
  readonly pidfd: number
  #witness = -1

  /** The heir of a process that has died, or `start`'s. */
  constructor(pidfd: number) {
    this.pidfd = pidfd
  }

  /**
   * For this process. Takes some milliseconds, and each page that is written afterwards costs a page fault once: not to
   * be done while anybody waits.
   */
  static start(): Heir {
    return new Heir(native.start().pidfd)
  }

  /**
   * Once somebody else has its pidfd, who will look for it.
   * @param witness a connected socket; a duplicate is kept open, because the heir knows it by its number
   */
  arm(witness: number): void {
    this.#witness = fds.dup(witness)
    native.arm(this.pidfd, this.#witness)
  }

  /** A duplicate of a userfaultfd of the dead process; undefined when there is no such one, or no heir any more. */
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

  /** Ends it, and with it what it alone holds. */
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
