import { closeSync, openSync } from 'node:fs'
import { isKernelError, PageferryError } from '@pageferry/base'
import {
  Freezer,
  type FreezerRecord,
  openTracker,
  readStat,
  readStatus,
  removeLeftovers,
  requireMovable,
  StoppedProcess,
  type Tracker,
  type TrackerKind,
} from '@pageferry/checkpoint'
import { fds, Poller } from '@pageferry/kernel'

/** Of a descriptor that is not open. */
const none = -1

/** What a successor must be told to find the process again, and to find what may be left in it. */
export interface OriginalRecord {
  /** For a user: the process may be gone when somebody asks what it was. */
  comm?: string
  threads?: number
  /** Ticks since boot: with the pid it names the process. */
  startTime?: string
  freezer?: FreezerRecord
  /** First page of the scratch area, if one was chosen. */
  scratch?: number
}

export interface OriginalFacts {
  residentPages: number
  /** Its pid in its own, innermost pid namespace. */
  nsPid: number
}

/**
 * The process that is being moved, and everything of ours that hangs on it: descriptors, the tracker, the stop by the
 * tracer, the freezer. It runs, is stopped by our tracer (and runs if we die), is held by the freezer (and stays so
 * if we die), or is gone; each method says which of these it leaves behind.
 */
export class OriginalProcess {
  readonly pid: number
  readonly #onExit: () => void
  #facts: OriginalFacts | null = null
  #pidfd = none
  #memFd = none
  #exitPoller: Poller | null = null
  #gone = false
  #tracker: Tracker | null = null
  #stopped: StoppedProcess | null = null
  #freezer: Freezer | null = null
  /** Of a worker that was killed; its scratch area, if one was chosen. */
  #leftovers: { scratch?: number } | null = null

  /** `onExit` is called once, when the process that was opened has ended. */
  constructor(pid: number, onExit: () => void) {
    this.pid = pid
    this.#onExit = onExit
  }

  /**
   * It runs on and notices nothing.
   * @throws as requireMovable does
   */
  open(): void {
    const { residentPages } = requireMovable(this.pid)
    this.#facts = { residentPages, nsPid: readStatus(this.pid).nsPids.at(-1) ?? this.pid }
    this.#open()
  }

  /** What `open` found. */
  get facts(): OriginalFacts {
    if (this.#facts === null) throw new PageferryError('INTERNAL', `process ${this.pid} was not inspected`)
    return this.#facts
  }

  /**
   * After kill -9 of the worker before: whatever it was then (running or frozen), it stays.
   * @returns false when it is gone; a pid comes again, so another process may have it by now
   */
  adopt({ startTime, freezer, scratch }: OriginalRecord): boolean {
    this.#leftovers = { scratch }
    if (freezer !== undefined) this.#freezer = new Freezer(freezer)
    try {
      this.#open()
      if (startTime === undefined || this.identity.startTime === startTime) return true
    } catch {
      // It is gone.
    }
    this.close()
    this.#gone = true
    return false
  }

  #open(): void {
    this.#pidfd = fds.pidfdOpen(this.pid)
    this.#memFd = openSync(`/proc/${this.pid}/mem`, 'r+')
    this.#exitPoller = new Poller(this.#pidfd, () => {
      this.#stopWatching()
      this.#gone = true
      this.#onExit()
    })
  }

  /** It was seen to have ended, by itself or by the hand of others. */
  get isGone(): boolean {
    return this.#gone
  }

  /** /proc/PID/mem; -1 when it is gone. */
  get memFd(): number {
    return this.#memFd
  }

  /** What tells it from other processes, for us and for a user. */
  get identity(): Required<Pick<OriginalRecord, 'comm' | 'threads' | 'startTime'>> {
    const { comm, nrThreads, startTime } = readStat(this.pid)
    return { comm, threads: nrThreads, startTime: String(startTime) }
  }

  get tracker(): Tracker | null {
    return this.#tracker
  }

  /** It runs, and writes to its memory are noted from now on. */
  track(kind?: TrackerKind): Tracker {
    this.#tracker = openTracker(this.pid, kind)
    return this.#tracker
  }

  /**
   * Chooses the cgroup that `keepFrozen` will create. It runs on: a host without a freezer is refused now, and a
   * successor knows the cgroup before it exists, so that nothing is waited for when the process stands still.
   */
  chooseFreezer(id: string): FreezerRecord {
    this.#freezer = Freezer.forProcess(this.pid, id)
    return this.#freezer.record
  }

  /**
   * Stopped by our tracer: it runs again when we die. On failure it runs.
   *
   * @param onStopping called when it is about to stand still
   */
  stop(onStopping: () => void): StoppedProcess {
    this.#stopped = StoppedProcess.stop(this.pid, 'all', onStopping)
    return this.#stopped
  }

  /** @throws INTERNAL when our tracer does not hold it */
  get stopped(): StoppedProcess {
    if (this.#stopped === null) throw new PageferryError('INTERNAL', `process ${this.pid} is not stopped`)
    return this.#stopped
  }

  /**
   * The freezer takes over from the tracer: from here it stands still whatever happens to us. On failure whoever held
   * it before still does. Idempotent; does nothing when it is gone.
   */
  keepFrozen(): void {
    if (this.#pidfd === none) return
    if (this.#freezer === null) throw new PageferryError('INTERNAL', 'no freezer was chosen')
    if (this.#stopped !== null) {
      this.#freezer.create()
      this.#freezer.add(this.pid)
    }
    this.#freezer.freeze()
    this.#stopped?.detach()
    this.#stopped = null
  }

  /** It runs as if nothing had happened, nothing of ours is left in it. Idempotent; succeeds when it is gone. */
  resume(): void {
    try {
      this.#closeTracker()
      this.#stopped?.resume()
      this.#stopped = null
    } finally {
      this.#freezer?.dissolve()
    }
    if (this.#leftovers !== null && this.#pidfd !== none) removeLeftovers(this.pid, this.#leftovers.scratch)
  }

  /** It is gone, and so is its cgroup. Idempotent. */
  kill(): void {
    if (this.#pidfd !== none) {
      try {
        fds.pidfdSendSignal(this.#pidfd, 9)
      } catch (error) {
        if (!isKernelError(error, 'ESRCH')) throw error
      }
    }
    this.#closeTracker()
    this.#stopWatching()
    // A v1 freezer holds even a killed process until it is thawed.
    this.#freezer?.thaw()
    this.#freezer?.remove()
  }

  /** Our descriptors only: it stays what it is. */
  close(): void {
    this.#stopWatching()
    for (const fd of [this.#memFd, this.#pidfd]) if (fd !== none) closeSync(fd)
    this.#memFd = none
    this.#pidfd = none
  }

  #closeTracker(): void {
    this.#tracker?.close()
    this.#tracker = null
  }

  #stopWatching(): void {
    this.#exitPoller?.close()
    this.#exitPoller = null
  }
}
