import { cgroupHold, type ExitOfProcess, FileTable, Freezer } from '@pageferry/checkpoint'
import type { Holds } from '@pageferry/service/worker'
import { AddressSpace } from './address-space.js'
import type { ProcessName } from './holds.js'
import { GhostSender } from './rounds/ghost-sender.js'
import { Task } from './task.js'

/** Address space ids count from here, in the order of discovery. No id is used twice in a migration. */
const rootAsId = 1

/** Facts that a successor needs to find the workload again. */
export interface WorkloadRecord {
  /** Shown to users who ask about a workload that is gone. */
  comm?: string
  threads?: number
  /** The root comes first. */
  tasks?: (ProcessName & { asId: number })[]
}

export interface WorkloadOptions {
  /** Limit of the data in files that have no name any more. */
  ghostBytes: number
  /** Is called once, when the root has ended. */
  onExit(exit: ExitOfProcess): void
}

/**
 * The workload: a root process and its descendants, with their address spaces. It is frozen, resumed and killed as one.
 *
 * It has four states: it runs; our tracer holds it (and it runs if we die); the freezer holds it (and it stays frozen
 * if we die); or it is gone. Each method says which of these it leaves behind.
 *
 * The preflight refuses a process with children, so there is only one task with one address space today.
 */
export class Workload {
  readonly root: Task
  /** Address spaces by as_id. */
  readonly spaces = new Map<number, AddressSpace>()
  readonly files = new FileTable()
  /** Files of it that have no name any more. */
  readonly ghosts: GhostSender
  readonly #holds: Holds
  #freezer: Freezer | null = null

  /**
   * @param pid of the root
   * @param list holds of this worker; `resume` and `kill` also undo those of the worker before
   */
  constructor(pid: number, list: Holds, { ghostBytes, onExit }: WorkloadOptions) {
    this.#holds = list
    this.ghosts = new GhostSender(this.files, ghostBytes)
    this.root = new Task(pid, list, { ghostBytes, onExit })
    this.spaces.set(rootAsId, new AddressSpace(rootAsId, this.root, this.files, list))
  }

  /**
   * Opens the workload, which runs on undisturbed. A host that could not freeze it is refused. The cgroup is chosen and
   * recorded here, so that the freeze waits for nothing.
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
   * Stops the workload for a moment and asks it for what is not visible from outside.
   * @throws REFUSED
   */
  probe(): Promise<void> {
    return this.root.probe()
  }

  /**
   * Takes over after kill -9 of the worker before: the workload stays as it was, running or frozen.
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
   * The address space of the root, the only one today. Trees will go through all of them: each use of this is a place
   * for a loop.
   */
  get space(): AddressSpace {
    return this.spaces.get(rootAsId) as AddressSpace
  }

  get record(): WorkloadRecord {
    const { comm, threads } = this.root.identity
    const tasks = [...this.spaces.values()].map(({ asId, task }) => ({ ...task.name, asId }))
    return { comm, threads, tasks }
  }

  /** The workload was seen to have ended, by itself or killed by others. */
  get isGone(): boolean {
    return this.root.isGone
  }

  /**
   * Stops the workload with our tracer; it runs again when we die. On failure it runs.
   *
   * @param onStopping called when it is about to stand still
   * @returns the number of threads
   */
  stop(onStopping: () => void): number {
    this.root.stop(onStopping)
    return this.root.stopped.threads.length
  }

  /**
   * The freezer takes over from the tracer: from here the workload stands still whatever happens to us. On failure the
   * tracer still holds it. Idempotent; does nothing when it is gone.
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

  /**
   * Lets the workload run as if nothing had happened; nothing of ours is left in it. Idempotent; succeeds when it is
   * gone.
   */
  resume(): void {
    this.#holds.releaseAll()
  }

  /** Kills the workload and removes its cgroup. Idempotent. */
  kill(): void {
    this.root.kill()
    this.#holds.releaseAll()
  }

  /** Closes our descriptors; the workload stays as it is. */
  close(): void {
    for (const space of this.spaces.values()) space.close()
    this.ghosts.close()
    this.root.close()
  }
}
