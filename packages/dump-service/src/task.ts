import { closeSync } from 'node:fs'
import { isKernelError, PageferryError } from '@pageferry/base'
import {
  Bystanders,
  type CaptureOptions,
  type ExitOfProcess,
  exitOf,
  type PreflightLimits,
  probe,
  readStat,
  readStatus,
  refusal,
  requireMovable,
  StoppedProcess,
  usesMemoryPolicies,
} from '@pageferry/checkpoint'
import { fds, Poller } from '@pageferry/kernel'
import type { Holds } from '@pageferry/service/worker'
import * as holds from './holds.js'

/** Stands for a descriptor that is not open. */
const none = -1

export interface TaskFacts {
  residentPages: number
  /** Its pid in its own, innermost pid namespace. */
  nsPid: number
}

/** Identifies a process, for this program and for a user. */
export interface TaskIdentity {
  comm: string
  threads: number
  /** Ticks since boot: with the pid it names the process. */
  startTime: string
}

export interface TaskOptions extends PreflightLimits {
  /** Is called once, when the process that was opened has ended. */
  onExit(exit: ExitOfProcess): void
}

/** One process of the workload: watches its end, and stops its threads with our tracer. */
export class Task {
  readonly pid: number
  readonly #holds: Holds
  readonly #options: TaskOptions
  #facts: TaskFacts | null = null
  #pidfd = none
  #exitPoller: Poller | null = null
  #gone = false
  #stopped: StoppedProcess | null = null
  readonly #bystanders = new Bystanders()
  #memoryPolicies = true

  constructor(pid: number, list: Holds, options: TaskOptions) {
    this.pid = pid
    this.#holds = list
    this.#options = options
  }

  /**
   * Opens the process, which runs on undisturbed.
   * @throws as requireMovable does
   */
  open(): void {
    const { residentPages } = requireMovable(this.pid, this.#options)
    this.#facts = { residentPages, nsPid: readStatus(this.pid).nsPids.at(-1) ?? this.pid }
    this.#watch()
    this.#holds.announce(holds.stop, this.name, this.pid)
  }

  /**
   * Stops the process for a moment and asks it for what is not visible from outside.
   * @throws REFUSED
   */
  async probe(): Promise<void> {
    this.#memoryPolicies = usesMemoryPolicies(this.pid)
    await this.#bystanders.add(this.pid)
    const problems = probe(this.pid, this.#bystanders)
    if (problems.length > 0) {
      throw refusal(`process ${this.pid} (${this.identity.comm}) cannot be moved`, problems)
    }
  }

  /** Facts from `probe`, for the capture. */
  get captureOptions(): CaptureOptions {
    return { bystanders: this.#bystanders, memoryPolicies: this.#memoryPolicies }
  }

  /**
   * Takes over the process as it is, running or frozen.
   *
   * @param startTime undefined: the worker before was killed before it had recorded it
   * @returns false when it is gone; pids are reused, so another process may have the pid by now
   */
  adopt(startTime: string | undefined): boolean {
    try {
      this.#watch()
      if (startTime === undefined || this.identity.startTime === startTime) return true
    } catch {
      // The process is gone.
    }
    this.noteGone()
    return false
  }

  /** The process was found to have ended before `onExit` was called. It will not be called. */
  noteGone(): void {
    this.close()
    this.#gone = true
  }

  #watch(): void {
    this.#pidfd = fds.pidfdOpen(this.pid)
    this.#exitPoller = new Poller(this.#pidfd, () => {
      this.#stopWatching()
      this.#gone = true
      this.#options.onExit(this.exit)
    })
  }

  /** The facts that `open` found. */
  get facts(): TaskFacts {
    if (this.#facts === null) throw new PageferryError('INTERNAL', `process ${this.pid} was not inspected`)
    return this.#facts
  }

  /** The process was seen to have ended, by itself or killed by others. */
  get isGone(): boolean {
    return this.#gone
  }

  /** Opened or adopted, and not closed. */
  get isOpen(): boolean {
    return this.#pidfd !== none
  }

  /** How it ended. It must have been opened. */
  get exit(): ExitOfProcess {
    return exitOf(this.pid, this.#pidfd)
  }

  get identity(): TaskIdentity {
    const { comm, nrThreads, startTime } = readStat(this.pid)
    return { comm, threads: nrThreads, startTime: String(startTime) }
  }

  get name(): holds.ProcessName {
    return { pid: this.pid, startTime: this.identity.startTime }
  }

  /**
   * Stops the process with our tracer; it runs again when we die. On failure it runs.
   *
   * @param onStopping called when it is about to stand still
   */
  stop(onStopping: () => void): void {
    const act = (): StoppedProcess => StoppedProcess.stop(this.pid, 'all', onStopping)
    this.#stopped = this.#holds.take(holds.stop, act, this.pid)
  }

  get isStopped(): boolean {
    return this.#stopped !== null
  }

  /** @throws INTERNAL when our tracer does not hold it */
  get stopped(): StoppedProcess {
    if (this.#stopped === null) throw new PageferryError('INTERNAL', `process ${this.pid} is not stopped`)
    return this.#stopped
  }

  /** Ends the tracing: the freezer holds the process by now. Idempotent. */
  leaveToFreezer(): void {
    if (this.#stopped === null) return
    this.#holds.handOver(holds.stop, this.pid)
    this.#stopped.detach()
    this.#stopped = null
    this.#bystanders.end()
  }

  /** Sends SIGKILL. A v1 freezer holds even a killed process until it is thawed. Idempotent. */
  kill(): void {
    this.#stopWatching()
    if (this.#pidfd === none) return
    try {
      fds.pidfdSendSignal(this.#pidfd, 9)
    } catch (error) {
      if (!isKernelError(error, 'ESRCH')) throw error
    }
  }

  /** Closes our descriptors; the process stays as it is. */
  close(): void {
    this.#stopWatching()
    this.#bystanders.end()
    if (this.#pidfd !== none) closeSync(this.#pidfd)
    this.#pidfd = none
  }

  #stopWatching(): void {
    this.#exitPoller?.close()
    this.#exitPoller = null
  }
}
