import { pageBytes, pagesInRuns } from '@pageferry/base'
import { memory } from '@pageferry/kernel'
import type { PageSet } from '@pageferry/pages'
import {
  type Frame,
  type FrameOf,
  hashesToPayload,
  hashRequestsMax,
  maxHashPages,
  WireError,
} from '@pageferry/wire'

export interface HashServerOptions {
  pid: number
  /** An open /proc/PID/mem. */
  memFd: number
  asId: number
  /** Pages with contents, by the final pagemap: no others may be asked for. */
  known: PageSet
  /** `done` is called when the kernel has the bytes, or the lane is lost. */
  send(frame: Frame, payload: Uint8Array, done: () => void): void
}

/**
 * Returns hashes of the frozen original's memory (--verify). It hashes the memory itself and not the sent pages: the
 * source must not check itself. The destination asks when no page is lazy any more, so this takes nothing from faults
 * and push. It asks for the next pages when it has an answer, so nothing queues here.
 */
export class HashServer {
  readonly #options: HashServerOptions
  readonly #buffer = Buffer.allocUnsafeSlow(maxHashPages * pageBytes)
  #answering = 0

  constructor(options: HashServerOptions) {
    this.#options = options
  }

  /** @throws WireError; a KernelError when the original has died, which is reported in another way */
  onRequest({ asId, runs }: FrameOf<'hashRequest'>): void {
    const { pid, memFd, known, send } = this.#options
    if (asId !== this.#options.asId)
      throw new WireError('OUTSIDE_PROCESS', `address space ${asId} is unknown`)
    if (this.#answering >= hashRequestsMax) {
      throw new WireError(
        'WINDOW_EXCEEDED',
        `more than ${hashRequestsMax} HashRequests without taking the answers`,
      )
    }
    for (let r = 0; r < runs.length; r += 2) {
      if (known.countRange(runs[r], runs[r + 1]) === runs[r + 1]) continue
      throw new WireError(
        'OUTSIDE_PROCESS',
        `page 0x${runs[r].toString(16)} has no contents in the final pagemap`,
      )
    }
    const nrPages = pagesInRuns(runs)
    const got = memory.readRuns(pid, memFd, runs, runs.length / 2, this.#buffer)
    if (got !== nrPages) throw new WireError('OUTSIDE_PROCESS', `only ${got} of ${nrPages} pages can be read`)
    const hashes = new BigUint64Array(nrPages)
    memory.hashPages(this.#buffer, nrPages, hashes)
    this.#answering++
    send({ type: 'pageHashes', asId, runs }, hashesToPayload(hashes), () => {
      this.#answering--
    })
  }
}
