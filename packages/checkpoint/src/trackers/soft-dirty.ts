import { closeSync, openSync } from 'node:fs'
import { pagemap } from '@pageferry/kernel'
import type { AreaMap, RunTable } from '@pageferry/memory'
import { StoppedProcess } from '../remote/stopped-process.js'
import { emptyScan, type MemoryScan, scanSharedMemory, type Tracker, trackedAreas } from './tracker.js'

const entriesPerRead = 65_536

/**
 * Soft-dirty bits (Documentation/admin-guide/mm/soft-dirty.rst), for kernels before 6.7. Reading the bits and
 * clearing them are two steps: the workload is stopped in between, or writes between the two would be lost.
 */
export class SoftDirtyTracker implements Tracker {
  readonly kind = 'soft-dirty'
  readonly #pid: number
  readonly #pagemap: number
  readonly #entries = new BigUint64Array(entriesPerRead)

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
        else this.#scanArea(area.start, area.nrPages, area.kind === 'file-private', scan)
      }
      pagemap.clearSoftDirty(this.#pid)
      return scan
    } finally {
      stopped?.resume()
    }
  }

  #scanArea(start: number, nrPages: number, file: boolean, scan: MemoryScan): void {
    const here = pagemap.PM_PRESENT | pagemap.PM_SWAPPED
    for (let done = 0; done < nrPages; ) {
      const nr = Math.min(entriesPerRead, nrPages - done)
      const got = pagemap.read(this.#pagemap, start + done, nr, this.#entries)
      for (let i = 0; i < got; i++) {
        const entry = this.#entries[i]
        if ((entry & here) === 0n) continue
        if (file && (entry & pagemap.PM_FILE_OR_SHARED) !== 0n) continue
        scan.present.addRange(start + done + i, 1)
        if ((entry & pagemap.PM_SOFT_DIRTY) !== 0n) scan.written.addRange(start + done + i, 1)
      }
      if (got === 0) return
      done += got
    }
  }

  noteRead(_runs: RunTable, _nrRuns: number, _data: Uint8Array): void {}

  close(): void {
    closeSync(this.#pagemap)
  }
}
