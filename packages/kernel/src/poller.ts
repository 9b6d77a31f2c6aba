import type { KernelErrorLike } from '@pageferry/base'
import { addon } from './addon.js'

interface Native {
  open(fd: number, callback: (readable: boolean, error?: KernelErrorLike) => void): unknown
  close(handle: unknown): void
  pause(handle: unknown): void
  resume(handle: unknown): void
}

const native = addon.poll as Native

/**
 * Calls back on the event loop of this thread whenever a descriptor is readable or its peer hung up. It serves
 * descriptors that Node has no stream for, such as userfaultfd, pidfd and raw sockets. It is level-triggered: it calls
 * again until everything was read, or it is paused or closed. It keeps the event loop alive while open.
 *
 * The descriptor becomes non-blocking. Close the poller before the descriptor. EEXIST when another poller of this
 * thread watches it already; EPERM for a regular file, which is always readable. After an error it is paused; close it.
 * One such error is EBADF, for a userfaultfd whose API was not negotiated.
 */
export class Poller {
  readonly #handle: unknown

  constructor(fd: number, callback: (readable: boolean, error?: KernelErrorLike) => void) {
    this.#handle = native.open(fd, callback)
  }

  /** Stops for good: no callback follows. May be called twice. */
  close(): void {
    native.close(this.#handle)
  }

  pause(): void {
    native.pause(this.#handle)
  }

  resume(): void {
    native.resume(this.#handle)
  }
}
