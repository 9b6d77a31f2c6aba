import { closeSync, openSync } from 'node:fs'
import type { RunTable } from '@pageferry/base'
import { pagemap } from '@pageferry/kernel'
import type { AreaMap } from '@pageferry/pages'
import { StoppedProcess } from '../remote/stopped-process.js'
import { readArea } from './pagemap-walk.js'
import { emptyScan, type MemoryScan, scanSharedMemory, type Tracker, trackedAreas } from './tracker.js'

/**
 * Soft-dirty bits (Documentation/admin-guide/mm/soft-dirty.rst), for kernels before 6.7. Reading the bits and clearing
 * them are two steps. The workload is stopped in between, or writes between the two would be lost.
 */
export class SoftDirtyTracker implements Tracker {
  readonly kind = 'soft-dirty'
  readonly #pid: number
  readonly #pagemap: number

  constructor(pid: number) {
    this.#pid = pid
    this.#pagemap = openSync(`/proc/${pid}/pagemap`, 'r')
  }

  scan(map: AreaMap, alreadyStopped = false): MemoryScan {
    const stopped = alreadyStopped ? null : StoppedProcess.stop(this.#pid, 'all')
    try {
      const scan: MemoryScan = emptyScan()
      for (const area of trackedAreas(map)) {
        if (area.kind === 'shared-anon') scanSharedMemory(this.#pid, area, scan)
        else {
          readArea(this.#pagemap, area, scan, (page, entry) => {
            scan.present.addRange(page, 1)
            if ((entry & pagemap.PM_SOFT_DIRTY) !== 0n) scan.written.addRange(page, 1)
          })
        }
      }
      pagemap.clearSoftDirty(this.#pid)
      return scan
    } finally {
      stopped?.resume()
    }
  }

  noteRead(_runs: RunTable, _nrRuns: number, _data: Uint8Array): void {}

  close(): void {
    closeSync(this.#pagemap)
  }
}
