import { PageferryError, pageBytes } from '@pageferry/base'
import { memory } from '@pageferry/kernel'
import type { PageSet } from '@pageferry/pages'
import { type Frame, hashesToPayload, maxRunsPerHashes } from '@pageferry/wire'

/** Pages hashed for one frame: 4 MiB of reading at a time. */
const pagesPerFrame = 1024

/**
 * Hashes of the frozen original (--verify): what the destination compares with what it reads back from the
 * skeleton and with the lazy pages it installs. The source must not check itself, so these come from its
 * memory directly and not from what was sent.
 */
export async function sendHashes(
  pages: PageSet,
  pid: number,
  memFd: number,
  send: (frame: Frame, payload: Uint8Array) => void,
  asId: number,
): Promise<void> {
  const table = new Float64Array(2 * maxRunsPerHashes)
  const buffer = Buffer.allocUnsafeSlow(pagesPerFrame * pageBytes)
  let from = 0
  while (from >= 0) {
    const { nrRuns, nrPages, nextPage } = pages.fillRunTable(table, from, maxRunsPerHashes, pagesPerFrame)
    from = nextPage
    const hashes = new BigUint64Array(nrPages)
    if (nrPages > 0) {
      const got = memory.readRuns(pid, memFd, table, nrRuns, buffer)
      if (got !== nrPages) {
        throw new PageferryError(
          'WORKLOAD_CHANGED',
          `only ${got} of ${nrPages} pages of the original can be read`,
        )
      }
      memory.hashPages(buffer, nrPages, hashes)
    }
    const runs = table.slice(0, 2 * nrRuns)
    send({ type: 'pageHashes', asId, kind: 'memory', runs, last: from < 0 }, hashesToPayload(hashes))
    // Lets the other lanes breathe: hashing 1 GiB takes a fifth of a second.
    await new Promise((resolve) => setImmediate(resolve))
  }
}
