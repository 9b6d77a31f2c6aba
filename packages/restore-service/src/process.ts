import { closeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError } from '@pageferry/base'
import { type Clocks, cgroupHold, Freezer, Restorer } from '@pageferry/checkpoint'
import {
  connectKeeper,
  fds,
  type KeeperClient,
  launchKeeper,
  Poller,
  readExitStatus,
} from '@pageferry/kernel'
import type { WorkloadExit } from '@pageferry/migration'
import type { Holds } from '@pageferry/service/worker'
import { keeperHold } from './holds.js'
import type { Known } from './records.js'

/** The keeper reaps its child and writes the exit status to disk. With fsync, that takes a moment. */
const exitStatusTries = 100
const exitStatusPauseMs = 20

export interface RestoredProcessOptions {
  /** The keeper's directory: its socket, and later the exit status, which the service finds there too. */
  directory: string
  /** Everything that must be undone; `discard` undoes it, including what the worker before has left. */
  holds: Holds
  /** Called once, when the process has ended; never synchronously. */
  onExit(exit: WorkloadExit): void
}

export interface SkeletonOptions {
  /** Id of the migration. */
  id: string
  /** The workload's pid in its own namespace. */
  nsPid: number
  newPidNamespace: boolean
  /** Limit of the data in files that have no name any more. */
  ghostBytes: number
  /** Offsets of a time namespace, relative to the host's clocks; null: it needs none. */
  clockOffsets: Clocks | null
}

/**
 * The process that the workload becomes, starting as the empty skeleton. Its owner after each step:
 *
 *   create   this worker: traced with EXITKILL, so the skeleton dies with the worker, whatever happens
 *   release  the freezer's cgroup: the process stays, frozen, when the worker dies
 *   thaw     its keeper, as whose child it runs
 *   discard  gone, and keeper and cgroup with it
 */
export class RestoredProcess {
  readonly #options: RestoredProcessOptions
  #keeper: KeeperClient | null = null
  #freezer: Freezer | null = null
  #restorer: Restorer | null = null
  #exitPoller: Poller | null = null
  #pidfd = -1
  #pid = 0
  #exit: WorkloadExit | undefined

  constructor(options: RestoredProcessOptions) {
    this.#options = options
  }

  /** Pid as this host sees it; 0 until there is one. */
  get pid(): number {
    return this.#pid
  }

  /** How the process ended; undefined while it lives. */
  get exit(): WorkloadExit | undefined {
    return this.#exit
  }

  /** Null: there is none, or it has ended together with the last process of the tree. */
  get keeper(): KeeperClient | null {
    return this.#keeper
  }

  /** Available from `create` until the lazy phase. */
  get skeleton(): { restorer: Restorer; keeper: KeeperClient } {
    if (this.#restorer === null || this.#keeper === null) throw new PageferryError('INTERNAL', 'no skeleton')
    return { restorer: this.#restorer, keeper: this.#keeper }
  }

  /** Null until `create`, and in a worker that adopted the process, which has nothing left to restore. */
  get restorer(): Restorer | null {
    return this.#restorer
  }

  /**
   * Starts the keeper and, below it, the empty skeleton. On failure, `discard` removes what there is.
   * @throws UNSUPPORTED_HOST when no cgroup can be made
   */
  async create(options: SkeletonOptions): Promise<{ restorer: Restorer; keeper: KeeperClient }> {
    const { id, nsPid, newPidNamespace, ghostBytes, clockOffsets } = options
    const { directory, holds } = this.#options
    holds.announce(cgroupHold, Freezer.atTop(id).record)
    holds.announce(keeperHold, { directory })
    const freezer = holds.take(cgroupHold, (record) => new Freezer(record))
    this.#freezer = freezer
    freezer.create()
    holds.take(keeperHold, () => directory)
    const keeper = await launchKeeper({
      dir: directory,
      newPidNamespace,
      monotonicOffsetNs: clockOffsets?.monotonicNs,
      boottimeOffsetNs: clockOffsets?.boottimeNs,
      removeCgroups: [freezer.record.path],
    })
    this.#keeper = keeper
    const restorer = Restorer.create(keeper, nsPid, ghostBytes)
    this.#restorer = restorer
    this.#pid = restorer.pid
    freezer.add(this.#pid)
    this.#watch(fds.dup(restorer.skeleton.pidfd))
    return { restorer, keeper }
  }

  /** Takes over after kill -9 of the worker before. The process is its keeper's, frozen or running, or it has ended. */
  adopt({ pid }: Pick<Known, 'pid'>): void {
    const record = this.#options.holds.facts(cgroupHold)
    if (record !== undefined) this.#freezer = new Freezer(record)
    this.#pid = pid ?? 0
    try {
      this.#keeper = connectKeeper(this.#options.directory)
      const child = this.#keeper.child()
      this.#pid = child.pid
      this.#watch(child.pidfd)
    } catch {
      // There is no keeper, or its child has ended and the keeper wrote down how.
      const exit = readExitStatus(this.#options.directory) ?? ({ kind: 'unknown' } as const)
      this.#exit = exit
      queueMicrotask(() => this.#options.onExit(exit))
    }
  }

  #watch(pidfd: number): void {
    this.#pidfd = pidfd
    this.#exitPoller = new Poller(pidfd, () => {
      this.#stopWatching()
      void this.#onExit()
    })
  }

  #stopWatching(): void {
    this.#exitPoller?.close()
    this.#exitPoller = null
  }

  async #onExit(): Promise<void> {
    const read = () => readExitStatus(this.#options.directory)
    for (let i = 0; i < exitStatusTries && read() === undefined; i++) await sleep(exitStatusPauseMs)
    this.#exit = read() ?? { kind: 'unknown' }
    this.#options.onExit(this.#exit)
  }

  /** Everything is restored: from here the cgroup keeps the process frozen, whether traced or not. */
  freeze(): void {
    this.#freezer?.freeze()
  }

  /** Stops each thread when it comes back from the kernel, for a moment in the lazy phase. `thaw` lets them go on. */
  holdStill(): void {
    this.#freezer?.beginFreezing()
  }

  /** Ends the tracing; the process must be frozen. From here it outlives this worker. */
  release(): void {
    if (this.#restorer === null || this.#freezer === null) throw new PageferryError('INTERNAL', 'no skeleton')
    this.#restorer.release(this.#freezer)
  }

  /** Lets the process run. Idempotent, also for a successor that finds it running or gone. */
  thaw(): void {
    this.#freezer?.thaw()
  }

  /** Kills the process and ends the keeper. Idempotent; succeeds also when one or both never existed. */
  discard(): void {
    this.#stopWatching()
    this.#options.holds.releaseAll()
    this.#keeper?.close()
    this.#keeper = null
  }

  /** Closes this worker's descriptors; the process goes on. */
  close(): void {
    this.#stopWatching()
    this.#keeper?.close()
    if (this.#pidfd >= 0) closeSync(this.#pidfd)
    this.#pidfd = -1
  }
}
