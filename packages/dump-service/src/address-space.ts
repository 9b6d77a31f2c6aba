import { closeSync, openSync } from 'node:fs'
import { isKernelError, PageferryError } from '@pageferry/base'
import {
  chooseScratch,
  type FileTable,
  openTracker,
  type StoppedProcess,
  type Tracker,
  type TrackerKind,
} from '@pageferry/checkpoint'
import { memory } from '@pageferry/kernel'
import type { PageSet } from '@pageferry/pages'
import type { Holds } from '@pageferry/service/worker'
import * as holds from './holds.js'
import { PageReader } from './rounds/page-reader.js'
import type { RoundsResult } from './rounds/rounds.js'
import type { Task } from './task.js'

/** Stands for a descriptor that is not open. */
const none = -1

/**
 * One address space of the workload, as the source sees it: how its memory is read, which tracker notes its writes, and
 * what is known about its pages.
 */
export class AddressSpace {
  /** Counts from 1; used in frames, records and holds. */
  readonly asId: number
  /** A process that uses it. */
  readonly task: Task
  /** Ids of the files that are mapped: one table for the workload, as in CRIU's files.img. */
  readonly files: FileTable
  readonly #holds: Holds
  #memFd = none
  #tracker: Tracker | null = null
  /** Results of the rounds for the freeze; null: there were none. */
  rounds: RoundsResult | null = null
  /** Pages that the destination fetches after the commit; null until the dump, and in a successor. */
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

  /** Opens the memory while the workload runs undisturbed. */
  open(): void {
    this.#memFd = openSync(`/proc/${this.pid}/mem`, 'r+')
  }

  /**
   * Rounds read pages by pid. After an execve(2) these are pages of the new program, at addresses that the old one had
   * too. Only the next scan of the tracker fails, with ESRCH: it knows the old memory.
   *
   * @throws WORKLOAD_CHANGED when the task has left this memory for another program since `open`
   */
  requireSameProgram(): void {
    if (!this.#isAbandoned()) return
    throw new PageferryError(
      'WORKLOAD_CHANGED',
      `process ${this.pid} has started another program (execve) during the migration: move it again`,
    )
  }

  /** No user of the memory is left: its file reads as empty. An address that is not mapped is EIO. */
  #isAbandoned(): boolean {
    if (this.#memFd === none) return false
    try {
      return memory.pread(this.#memFd, 0n, new Uint8Array(1)) === 0
    } catch (error) {
      if (isKernelError(error, 'EIO')) return false
      throw error
    }
  }

  /** The pid of `task`, under which /proc shows this address space. */
  get pid(): number {
    return this.task.pid
  }

  /** Descriptor of /proc/PID/mem; -1 when it is closed. */
  get memFd(): number {
    return this.#memFd
  }

  /** Null until `track` is called. */
  get tracker(): Tracker | null {
    return this.#tracker
  }

  /** Starts to track writes to the memory. The workload runs. */
  track(kind?: TrackerKind): Tracker {
    const { asId } = this
    this.#holds.announce(holds.tracker, { asId }, asId)
    this.#tracker = this.#holds.take(holds.tracker, () => openTracker(this.pid, kind), asId)
    return this.#tracker
  }

  /** @param tracker is told which pages were read; null: the memory is not written any more */
  reader(tracker: Tracker | null = null): PageReader {
    return new PageReader(this.pid, this.#memFd, tracker)
  }

  /**
   * Chooses the place of the scratch area. The workload may run or stand still.
   *
   * It is called before the freeze, so that the freeze need not wait for it.
   */
  chooseScratch(): void {
    const facts = { ...this.task.name, page: chooseScratch(this.pid) }
    this.#holds.announce(holds.scratch, facts, this.asId)
  }

  /**
   * Maps the scratch area. The task is stopped. If it has mapped something at the chosen place since, another place is
   * chosen.
   */
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

  /** Removes everything of ours from the threads. They stay stopped. */
  unmapScratch(): void {
    this.#holds.release(holds.scratch, this.asId)
    this.task.stopped.leave()
  }

  /** Closes our descriptors and nothing else. */
  close(): void {
    if (this.#memFd !== none) closeSync(this.#memFd)
    this.#memFd = none
  }
}
