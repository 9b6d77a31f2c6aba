import { closeSync, openSync, readFileSync } from 'node:fs'
import { addressOf, isKernelError, PageferryError, pageBytes } from '@pageferry/base'
import { fds, memory, processes, ptrace } from '@pageferry/kernel'
import { hasExited } from '../exited.js'
import { readMaps } from '../proc/maps.js'
import { readTids } from '../proc/tasks.js'
import { codeBytes } from './exit-sequence.js'
import { findCodeSite, findGap, scratchPages } from './scratch.js'
import { lastProcessor, SchedulerClocks, schedulerFacts } from './sleep-clock.js'
import { SYS } from './syscalls.js'
import { timedCalls } from './waits.js'
import { type InjectionSite, type PreStop, stopTimeoutMs, WorkloadThread } from './workload-thread.js'

/** TRACESYSGOOD marks syscall stops; SUSPEND_SECCOMP lets injected calls pass a filter (CAP_SYS_ADMIN). */
const seizeOptions = ptrace.PTRACE_O_TRACESYSGOOD
const SIGTRAP = 5
/** Threads may be born while we stop the others. Each pass stops all that the last one found. */
const maxStopPasses = 64

/**
 * Every thread of the workload, stopped. The object owns the stops: `resume` lets all go on as they were, `close` only
 * detaches. If this process dies, the kernel resumes them.
 */
export class StoppedProcess {
  readonly pid: number
  readonly pidfd: number
  readonly memFd: number
  readonly threads: WorkloadThread[] = []
  readonly #preStop = new Map<number, PreStop>()
  #injection: InjectionSite | null = null
  #scratch = 0n
  #stopSignal = 0

  private constructor(pid: number) {
    this.pid = pid
    this.pidfd = fds.pidfdOpen(pid)
    this.memFd = openSync(`/proc/${pid}/mem`, 'r+')
  }

  /**
   * Stops the whole process (`threads: 'all'`) or only its first living thread. One thread is enough to inject a call
   * that concerns the address space. On failure every thread that was stopped runs again.
   *
   * @param onStopping called when all is prepared: from here on the process stands still
   */
  static stop(pid: number, which: 'all' | 'one', onStopping = (): void => {}): StoppedProcess {
    const stopped = new StoppedProcess(pid)
    const seized: number[] = []
    let interrupted: number[] = []
    try {
      const site = stopped.#site()
      const clocks = new SchedulerClocks()
      // Before the first thread is stopped: afterwards it would count as downtime.
      for (const tid of which === 'all' ? readTids(pid) : [pid]) stopped.#prepareClock(tid, clocks)
      onStopping()
      for (let pass = 0; ; pass++) {
        if (pass === maxStopPasses) {
          throw new PageferryError(
            'TIMEOUT',
            `process ${pid} creates threads faster than they can be stopped`,
          )
        }
        const fresh = readTids(pid).filter((tid) => !seized.includes(tid))
        if (fresh.length === 0) break
        const wanted = which === 'all' ? fresh : fresh.slice(0, 1)
        interrupted = []
        for (const tid of wanted) {
          stopped.#notePreStop(tid, clocks)
          if (seize(tid)) interrupted.push(tid)
        }
        for (const tid of interrupted) {
          const stopSignal = waitForStop(tid)
          if (stopSignal === null) continue
          stopped.#stopSignal ||= stopSignal
          seized.push(tid)
          stopped.#checkPreStop(tid)
          stopped.threads.push(new WorkloadThread(site, tid, stopped.#preStop.get(tid)))
        }
        if (which === 'one' && seized.length > 0) break
      }
      if (seized.length === 0) throw new PageferryError('WORKLOAD_EXITED', `process ${pid} has exited`)
      return stopped
    } catch (error) {
      for (const tid of interrupted) if (!seized.includes(tid)) abandonStop(tid)
      for (const tid of seized) tryDetach(tid)
      stopped.#closeFds()
      throw error
    }
  }

  /**
   * The signal that had stopped the process before we did (job control), 0 when it ran. It stays stopped when it is let go:
   * the kernel reinstates the stop when its tracer leaves (__ptrace_unlink).
   */
  get stopSignal(): number {
    return this.#stopSignal
  }

  get leader(): WorkloadThread {
    return this.threads[0]
  }

  #site(): InjectionSite {
    const { pid, memFd } = this
    this.#injection ??= { pid, memFd, codeAddress: findCodeSite(readMaps(pid), memFd), owner: null }
    return this.#injection
  }

  #prepareClock(tid: number, clocks: SchedulerClocks): void {
    const task = `/proc/${this.pid}/task/${tid}`
    try {
      if (timedCalls.has(Number.parseInt(readFileSync(`${task}/syscall`, 'utf8'), 10)))
        clocks.measure(lastProcessor(task))
    } catch {
      // The thread is gone.
    }
  }

  /** A thread whose processor was not measured went to sleep just now, so its elapsed time counts as zero. */
  #notePreStop(tid: number, clocks: SchedulerClocks): void {
    const task = `/proc/${this.pid}/task/${tid}`
    try {
      const call = readFileSync(`${task}/syscall`, 'utf8')
      const nr = Number.parseInt(call, 10)
      if (nr !== SYS.restart_syscall) interruptedSleeps.delete(tid)
      if (!timedCalls.has(nr)) return
      const offset = clocks.offset(lastProcessor(task))
      const { execStartNs, voluntarySwitches } = schedulerFacts(task)
      const known = interruptedSleeps.get(tid) ?? {
        nr: nr === SYS.restart_syscall ? restartedCall(this.pid, tid, call) : nr,
        beganNs: offset === null ? processes.clockGettime(processes.CLOCK_MONOTONIC) : execStartNs + offset,
      }
      this.#preStop.set(tid, { ...known, voluntarySwitches })
    } catch {
      // The thread is gone; the stop will report that.
    }
  }

  /**
   * Detects a thread whose sleep ended before the stop came. It may be in its next sleep already, of which we know
   * nothing. Then it has gone to sleep more often than the stop alone explains.
   */
  #checkPreStop(tid: number): void {
    const noted = this.#preStop.get(tid)
    if (noted === undefined) return
    const { voluntarySwitches } = schedulerFacts(`/proc/${this.pid}/task/${tid}`)
    if (voluntarySwitches <= noted.voluntarySwitches + 1) {
      interruptedSleeps.set(tid, noted)
      return
    }
    interruptedSleeps.delete(tid)
    this.#preStop.delete(tid)
  }

  /** Address of injected code, in the padding of the vdso. */
  get codeSite(): bigint {
    return this.#site().codeAddress
  }

  /**
   * Maps the area for arguments and results in the workload, at `page` if that was chosen before. The area is not part
   * of the captured memory map.
   */
  mapScratch(page = findGap(readMaps(this.pid), scratchPages)): { page: number; nrPages: number } {
    // Shared, so that the kernel never merges it with a neighbour. No other process maps it.
    this.leader.call('mmap', addressOf(page), scratchPages * pageBytes, 3, 0x10_0021, -1, 0)
    this.#scratch = addressOf(page)
    return { page, nrPages: scratchPages }
  }

  unmapScratch(): void {
    if (this.#scratch === 0n) return
    // Use the thread that holds the injection site: another one would have to take its place first.
    const thread = this.#site().owner ?? this.leader
    thread.call('munmap', this.#scratch, scratchPages * pageBytes)
    this.#scratch = 0n
  }

  get scratch(): bigint {
    if (this.#scratch === 0n) throw new PageferryError('INTERNAL', 'no scratch area is mapped')
    return this.#scratch
  }

  read(address: bigint, length: number): Buffer {
    const bytes = Buffer.alloc(length)
    const got = memory.pread(this.memFd, address, bytes)
    if (got !== length)
      throw new PageferryError('WORKLOAD_CHANGED', `memory at 0x${address.toString(16)} vanished`)
    return bytes
  }

  write(address: bigint, bytes: Uint8Array): void {
    memory.pwrite(this.memFd, address, bytes)
  }

  /** Restores the state of every thread; they stay stopped. Idempotent. */
  leave(): void {
    this.unmapScratch()
    for (const thread of this.threads) thread.leave()
    if (this.#injection !== null) this.write(this.#injection.codeAddress, new Uint8Array(codeBytes))
  }

  /** Lets the workload run on as if nothing had happened. */
  resume(): void {
    try {
      for (const thread of this.threads) thread.renewWait()
      this.leave()
    } finally {
      this.detach()
    }
  }

  /** Ends the tracing; frozen threads stay frozen, others run. */
  detach(): void {
    for (const thread of this.threads) tryDetach(thread.tid)
    this.#closeFds()
  }

  #closeFds(): void {
    closeSync(this.memFd)
    closeSync(this.pidfd)
  }
}

/** Range of user addresses. Clock numbers are small, or negative for the clocks of a process (32 or 64 bits). */
const lowestPointer = 0x1_0000
const highestPointer = 0x7fff_ffff_ffff

/**
 * Sleeps that an earlier stop of ours has interrupted, by tid. After that the kernel shows restart_syscall, and no
 * longer when the sleep began.
 */
const interruptedSleeps = new Map<number, PreStop>()

/**
 * Finds the call behind restart_syscall, which only says that some other stop interrupted a call before. The place
 * where the thread sleeps tells which. Its registers still hold that call's arguments: a clock's number where nanosleep
 * has a pointer.
 */
function restartedCall(pid: number, tid: number, call: string): number {
  const wchan = readFileSync(`/proc/${pid}/task/${tid}/wchan`, 'utf8')
  if (wchan.includes('nanosleep')) {
    const first = Number(call.split(' ')[1])
    return first >= lowestPointer && first <= highestPointer ? SYS.nanosleep : SYS.clock_nanosleep
  }
  if (wchan.includes('poll')) return SYS.poll
  if (wchan.includes('futex')) return SYS.futex
  return SYS.restart_syscall
}

function seize(tid: number): boolean {
  try {
    ptrace.seize(tid, seizeOptions)
    ptrace.interrupt(tid)
    return true
  } catch (error) {
    if (isKernelError(error, 'ESRCH')) return false
    if (isKernelError(error, 'EPERM')) {
      // The kernel also refuses a thread that is about to end (exit_state in ptrace_attach).
      if (hasExited(tid)) return false
      throw new PageferryError(
        'NOT_PERMITTED',
        `thread ${tid} cannot be traced: it is traced already, or this is not root`,
        { cause: error },
      )
    }
    throw error
  }
}

/**
 * Waits for the stop that PTRACE_INTERRUPT asked for.
 * @returns the signal of the group stop that the thread is in, 0 without one; null when it exited first
 */
function waitForStop(tid: number): number | null {
  for (;;) {
    const status = ptrace.wait(tid, stopTimeoutMs)
    if (status.kind !== 'stopped') return null
    // ptrace(2), "Group-stop": with PTRACE_SEIZE the stop names its signal, and SIGTRAP is our own.
    if (status.event === ptrace.PTRACE_EVENT_STOP) return status.signal === SIGTRAP ? 0 : status.signal
    // A signal came first: deliver it. The interrupt stays pending behind it.
    ptrace.resume(tid, 'cont', status.event === 0 ? status.signal : 0)
  }
}

/** Only a stopped thread can be detached. One that does not stop in time is released when this process ends. */
function abandonStop(tid: number): void {
  try {
    if (waitForStop(tid) !== null) tryDetach(tid)
  } catch {
    // The thread is gone, or hangs in the kernel.
  }
}

function tryDetach(tid: number): void {
  try {
    ptrace.detach(tid, 0)
  } catch (error) {
    if (!isKernelError(error, 'ESRCH')) throw error
  }
}
