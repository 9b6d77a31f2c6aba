import { closeSync, openSync } from 'node:fs'
import {
  chooseScratch,
  type FileTable,
  openTracker,
  type StoppedProcess,
  type Tracker,
  type TrackerKind,
} from '@pageferry/checkpoint'
import type { PageSet } from '@pageferry/pages'
import type { Holds } from '@pageferry/service/worker'
import * as holds from './holds.js'
import { PageReader } from './rounds/page-reader.js'
import type { RoundsResult } from './rounds/rounds.js'
import type { Task } from './task.js'

/** Of a descriptor that is not open. */
const none = -1

/**
 * One address space of the workload, as the source sees it: how its memory is read, what tracks the writes to it, and what
 * was found out about its pages.
 */
export class AddressSpace {
  /** From 1; in frames, records and holds. */
  readonly asId: number
  /** A process that has it. */
  readonly task: Task
  /** Ids of the files that are mapped: one table for the workload, as in CRIU's files.img. */
  readonly files: FileTable
  readonly #holds: Holds
  #memFd = none
  #tracker: Tracker | null = null
  /** What the rounds leave for the freeze; null: there were none. */
  rounds: RoundsResult | null = null
  /** Pages that the destination gets after the commit; null until the dump, and in a successor. */
  lazy: PageSet | null = null
  /** Pages with contents in the final pagemap; null as above. */
  contents: PageSet | null = null
  /** The final pagemap as an image, until it is saved. */
  pagemap: Uint8Array | null = null

  constructor(asId: number, task: Task, files: FileTable, list: Holds) {
    this.asId = asId
    this.task = task
    this.files = files
    this.#holds = list
  }

  /** The workload runs on and notices nothing. */
  open(): void {
    this.#memFd = openSync(`/proc/${this.pid}/mem`, 'r+')
  }

  /** Of `task`: what /proc shows of this address space is found there. */
  get pid(): number {
    return this.task.pid
  }

  /** /proc/PID/mem; -1 when it is closed. */
  get memFd(): number {
    return this.#memFd
  }

  /** Null until `track`. */
  get tracker(): Tracker | null {
    return this.#tracker
  }

  /** The workload runs, and writes to its memory are noted from now on. */
  track(kind?: TrackerKind): Tracker {
    const { asId } = this
    this.#holds.announce(holds.tracker, { asId }, asId)
    this.#tracker = this.#holds.take(holds.tracker, () => openTracker(this.pid, kind), asId)
    return this.#tracker
  }

  /** @param tracker is told what was read; null: nothing is written any more */
  reader(tracker: Tracker | null = null): PageReader {
    return new PageReader(this.pid, this.#memFd, tracker)
  }

  /**
   * Where the scratch area will lie. The workload runs, or stands still.
   *
   * Done before the freeze, so that the mapping waits for nothing then.
   */
  chooseScratch(): void {
    const facts = { ...this.task.name, page: chooseScratch(this.pid) }
    this.#holds.announce(holds.scratch, facts, this.asId)
  }

  /** The task is stopped. It may have mapped something at the chosen place since: then another place is chosen. */
  mapScratch(): void {
    try {
      this.#takeScratch()
    } catch (error) {
      if ((error as { code?: string }).code !== 'EEXIST') throw error
      this.chooseScratch()
      this.#takeScratch()
    }
  }

  #takeScratch(): void {
    const { stopped } = this.task
    const act = ({ page }: { page: number }): StoppedProcess => {
      stopped.mapScratch(page)
      return stopped
    }
    this.#holds.take(holds.scratch, act, this.asId)
  }

  /** Every thread is as it was found, with nothing of ours around it; they stay stopped. */
  unmapScratch(): void {
    this.#holds.release(holds.scratch, this.asId)
    this.task.stopped.leave()
  }

  /** Our descriptors only. */
  close(): void {
    if (this.#memFd !== none) closeSync(this.#memFd)
    this.#memFd = none
  }
}
