import { cgroupHold, FileTable, Freezer } from '@pageferry/checkpoint'
import type { Holds } from '@pageferry/service/worker'
import { AddressSpace } from './address-space.js'
import type { ProcessName } from './holds.js'
import { Task } from './task.js'

/** Ids of address spaces count from here, in the order in which they are found; none is used twice in a migration. */
const rootAsId = 1

/** What a successor must be told to find the workload again. */
export interface WorkloadRecord {
  /** For users who ask about a workload that is gone. */
  comm?: string
  threads?: number
  /** The root comes first. */
  tasks?: (ProcessName & { asId: number })[]
}

/**
 * What is moved: a root process and its descendants, with their address spaces. It is frozen, resumed and killed as one. It
 * runs, is stopped by our tracer (and runs if we die), is held by the freezer (and stays so if we die), or is gone; each
 * method says which of these it leaves behind.
 *
 * The preflight refuses a process with children, so there is one task with one address space yet.
 */
export class Workload {
  readonly root: Task
  /** By as_id. */
  readonly spaces = new Map<number, AddressSpace>()
  readonly files = new FileTable()
  readonly #holds: Holds
  #freezer: Freezer | null = null

  /**
   * @param pid of the root
   * @param list of this worker's holds; what the worker before has left there is undone by `resume` and `kill`
   * @param onExit is called once, when the root has ended
   */
  constructor(pid: number, list: Holds, onExit: () => void) {
    this.#holds = list
    this.root = new Task(pid, list, onExit)
    this.spaces.set(rootAsId, new AddressSpace(rootAsId, this.root, this.files, list))
  }

  /**
   * It runs on and notices nothing. A host that could not freeze it is refused: the cgroup is chosen and on record, so that
   * nothing is waited for when the workload stands still.
   *
   * @param id of the migration
   * @throws as requireMovable does
   */
  open(id: string): void {
    this.root.open()
    this.space.open()
    this.#holds.announce(cgroupHold, Freezer.forProcess(this.root.pid, id).record)
  }

  /**
   * After kill -9 of the worker before: whatever it was then (running or frozen), it stays.
   * @returns false when it is gone
   */
  adopt({ tasks = [] }: WorkloadRecord): boolean {
    if (!this.root.adopt(tasks[0]?.startTime)) return false
    try {
      this.space.open()
      return true
    } catch {
      // A pidfd of a zombie can be opened, its memory cannot.
      this.root.noteGone()
      return false
    }
  }

  /**
   * That of the root, the only one of a workload that is moved yet. Trees will go through all of them: each use of this is a
   * place for a loop.
   */
  get space(): AddressSpace {
    return this.spaces.get(rootAsId) as AddressSpace
  }

  get record(): WorkloadRecord {
    const { comm, threads } = this.root.identity
    const tasks = [...this.spaces.values()].map(({ asId, task }) => ({ ...task.name, asId }))
    return { comm, threads, tasks }
  }

  /** It was seen to have ended, by itself or by the hand of others. */
  get isGone(): boolean {
    return this.root.isGone
  }

  /**
   * Stopped by our tracer: it runs again when we die. On failure it runs.
   *
   * @param onStopping called when it is about to stand still
   * @returns the number of threads
   */
  stop(onStopping: () => void): number {
    this.root.stop(onStopping)
    return this.root.stopped.threads.length
  }

  /**
   * The freezer takes over from the tracer: from here it stands still whatever happens to us. On failure the tracer still
   * holds it. Idempotent; does nothing when it is gone.
   */
  keepFrozen(): void {
    if (!this.root.isOpen) return
    this.#freezer ??= this.#holds.take(cgroupHold, (record) => new Freezer(record))
    if (this.root.isStopped) {
      this.#freezer.create()
      this.#freezer.add(this.root.pid)
    }
    this.#freezer.freeze()
    this.root.leaveToFreezer()
  }

  /** It runs as if nothing had happened, nothing of ours is left in it. Idempotent; succeeds when it is gone. */
  resume(): void {
    this.#holds.releaseAll()
  }

  /** It is gone, and so is its cgroup. Idempotent. */
  kill(): void {
    this.root.kill()
    this.#holds.releaseAll()
  }

  /** Our descriptors only: it stays what it is. */
  close(): void {
    for (const space of this.spaces.values()) space.close()
    this.root.close()
  }
}
