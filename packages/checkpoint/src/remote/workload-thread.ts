import { isKernelError, PageferryError } from '@pageferry/base'
import { fds, memory, processes, ptrace } from '@pageferry/kernel'
import { type ProcStatus, readStatus } from '../proc/status.js'
import { errnoName } from './errno.js'
import {
  closeEntryOffset,
  entryOffset,
  injectionCode,
  tableEntryOffset,
  tableReturnOffset,
} from './exit-sequence.js'
import { interruptedCall, repairSpuriousEintr, rewound } from './interrupted.js'
import { SYS, type SyscallName } from './syscalls.js'
import { type Remaining, type Wait, waitOf, withRemaining } from './waits.js'

const { REG } = ptrace

/** Longest time for one injected system call. None of them waits for anything except a lock. */
const syscallTimeoutMs = 10_000
/** Longest time for a running thread to reach a stop. Uninterruptible sleep (NFS, a slow disk) can delay it. */
export const stopTimeoutMs = 10_000

const allSignals = 0xffff_ffff_ffff_ffffn
const SIGSTOP = 19
/** Signals that the kernel drops when they have no handler (SIG_KERNEL_IGNORE_MASK): SIGURG, SIGWINCH, SIGCHLD. */
const droppedSignals = [23, 28, 17]

/** A thread's system call as known before the stop, for relative timeouts. */
export interface PreStop {
  nr: number
  beganNs: bigint
  /** How often the thread had gone to sleep by then. */
  voluntarySwitches: number
}

/** Addresses of injected code and data in a workload; see scratch.ts. */
export interface InjectionSite {
  pid: number
  memFd: number
  codeAddress: bigint
  /** The thread whose state the code there would restore. Only this thread may be in the middle of injection. */
  owner: WorkloadThread | null
}

/** The call that ends a table: the thread sends itself a signal. */
export interface Mark {
  name: 'tgkill'
  args: [pid: number, tid: number, signal: number]
}

/**
 * Chooses a signal that is neither blocked nor caught in this thread: it cannot be pending, and only a tracer can see
 * it. null: the program catches each of them (Go does), or the thread blocks them. So its calls are stopped one by one.
 */
function chooseMark(
  { nsTgid, nsPids, sigBlocked }: ProcStatus,
  mask: bigint,
  sigCaught: bigint,
): Mark | null {
  const taken = sigBlocked | sigCaught | mask
  const signal = droppedSignals.find((each) => (taken & bit(each)) === 0n)
  return signal === undefined ? null : { name: 'tgkill', args: [nsTgid, nsPids.at(-1) ?? 0, signal] }
}

function bit(signal: number): bigint {
  return 1n << BigInt(signal - 1)
}

/** Whether a signal will run a handler or end the process as soon as the thread goes on. */
function signalDeliverable({ sigPending, sharedPending, sigBlocked, sigIgnored }: ProcStatus): boolean {
  return ((sigPending | sharedPending) & ~sigBlocked & ~sigIgnored) !== 0n
}

/**
 * One stopped thread of the workload, in which system calls are made.
 *
 * Order matters at every step, because we may be killed between any two. Registers are pointed at the code before the
 * signals are blocked. Signals are unblocked before the registers are pointed back. In between the code itself restores
 * both (exit-sequence.ts).
 */
export class WorkloadThread {
  readonly tid: number
  readonly mask: bigint
  /** Registers as the thread was found. It must see them when it goes on here. */
  regs: BigUint64Array
  /** Null: it was in no wait with a timeout. */
  readonly wait: Wait | null
  /**
   * Status as the thread was found. Other threads may have changed process-wide parts since (signal actions, umask).
   */
  readonly status: ProcStatus
  /** Ends tables of calls; null until the first one. */
  #mark: Mark | null = null
  readonly #site: InjectionSite
  #injecting = false
  #heldStop = 0

  /**
   * The thread must be in a ptrace stop inside get_signal (any stop after PTRACE_INTERRUPT).
   *
   * @param sleep the timed call that it was seen in before the stop
   */
  constructor(site: InjectionSite, tid: number, sleep?: PreStop) {
    const stoppedNs = processes.clockGettime(processes.CLOCK_MONOTONIC)
    this.#site = site
    this.tid = tid
    this.status = readStatus(site.pid, tid)
    this.mask = ptrace.getSigmask(tid)
    requireOwnSyscalls(tid)
    const found = leaveRestartableSequence(tid, site.memFd, ptrace.getRegs(tid))
    this.regs = repairSpuriousEintr(found, signalDeliverable(this.status))
    const times = { beganNs: sleep?.beganNs ?? stoppedNs, stoppedNs }
    const isRepaired = this.regs[REG.rax] !== found[REG.rax]
    const interruption = { nr: sleep?.nr ?? interruptedCall(this.regs), isRepaired, ...times }
    this.wait = waitOf(this.regs, interruption, (address, length) => readTimeout(site.memFd, address, length))
    if (!isRepaired) return
    // At once: if we are killed before this thread's turn, it must not see the EINTR of our stop.
    this.renewWait()
    ptrace.setRegs(tid, this.regs)
  }

  /** Registers with which another kernel resumes the thread, and what must then be in its memory. */
  get movable(): Remaining {
    return this.wait === null ? { regs: this.regs } : remaining(this.wait)
  }

  /** Writes what remains of a wait that the kernel has forgotten: the thread may have stood still for long. */
  renewWait(): void {
    if (this.wait === null || this.wait.isInKernel) return
    const { regs, time } = remaining(this.wait)
    this.regs = regs
    if (time !== undefined) ifMapped(() => writeMemory(this.#site.memFd, time.address, time.bytes))
  }

  /** Runs one system call in the thread; returns its result or throws with the errno that the thread got. */
  call(name: SyscallName, ...args: (bigint | number)[]): bigint {
    const result = this.tryCall(name, ...args)
    if (result < 0n && result >= -4095n) throw remoteError(name, Number(-result), this.tid)
    return result
  }

  /** Like `call`, but a negative errno is a result. */
  tryCall(name: SyscallName, ...args: (bigint | number)[]): bigint {
    this.#enter(entryOffset, SYS[name], args)
    return this.#step()
  }

  /**
   * Runs a system call that returns a descriptor, lets `use` duplicate it, and closes it in the workload. The close is
   * part of the injected code: it happens even if we die while `use` runs.
   */
  callFd<T>(use: (fd: number) => T, name: SyscallName, ...args: (bigint | number)[]): T {
    this.#enter(closeEntryOffset, SYS[name], args)
    const fd = this.#step()
    if (fd < 0n) throw remoteError(name, Number(-fd), this.tid)
    try {
      return use(Number(fd))
    } finally {
      this.#step()
    }
  }

  /**
   * Returns the call that must end a table in this thread; null: no signal is usable for that.
   *
   * @param sigCaught of the process, all of whose threads are stopped
   */
  markWith(sigCaught: bigint): Mark | null {
    this.#mark ??= chooseMark(this.status, this.mask, sigCaught)
    return this.#mark
  }

  /**
   * Runs the calls of a table that is in the scratch area (call-batch.ts).
   *
   * @param markRow address of the row with the mark, the last one that is run
   */
  runTable(table: bigint, markRow: bigint): void {
    if (this.#mark === null) throw new PageferryError('INTERNAL', 'a table of calls without an end')
    const [, , signal] = this.#mark.args
    const done = this.#site.codeAddress + BigInt(tableReturnOffset)
    this.#enter(tableEntryOffset, 0, [], table)
    ptrace.setSigmask(this.tid, allSignals & ~bit(signal))
    for (;;) {
      ptrace.resume(this.tid, 'cont', 0)
      const stop = ptrace.wait(this.tid, syscallTimeoutMs)
      if (stop.kind !== 'stopped') throw new PageferryError('WORKLOAD_EXITED', `thread ${this.tid} exited`)
      // Of a process in a group stop, see #step.
      if (stop.event === ptrace.PTRACE_EVENT_STOP) continue
      // SIGSTOP may come before the mark, which then is still to come.
      if (stop.signal === SIGSTOP) {
        this.#heldStop = SIGSTOP
        continue
      }
      if (stop.signal !== signal) {
        throw new PageferryError('KERNEL', `thread ${this.tid} got signal ${stop.signal} in a table of calls`)
      }
      const regs = ptrace.getRegs(this.tid)
      if (regs[REG.r15] === markRow && regs[REG.rip] === done) return
      // Another process sent the same signal. The kernel would drop it without us, too.
    }
  }

  /** Does the same with two stops for each row, in a thread that has no mark. */
  stepTable(table: bigint, nrRows: number): void {
    this.#enter(tableEntryOffset, 0, [], table)
    for (let row = 0; row < nrRows; row++) this.#step()
  }

  /** Only one thread at a time may enter: the code at the site holds the registers of that thread. */
  #enter(offset: number, nr: number, args: (bigint | number)[], table = this.regs[REG.r15]): void {
    const regs = this.regs.slice()
    regs[REG.r15] = table
    regs[REG.rip] = this.#site.codeAddress + BigInt(offset)
    regs[REG.rax] = BigInt(nr)
    regs[REG.orig_rax] = BigInt.asUintN(64, -1n)
    const order = [REG.rdi, REG.rsi, REG.rdx, REG.r10, REG.r8, REG.r9]
    for (const [i, register] of order.entries()) regs[register] = BigInt.asUintN(64, BigInt(args[i] ?? 0))
    if (!this.#injecting) {
      this.#site.owner?.leave()
      this.#site.owner = this
      writeMemory(this.#site.memFd, this.#site.codeAddress, injectionCode(rewound(this.regs), this.mask))
    }
    ptrace.setRegs(this.tid, regs)
    if (!this.#injecting) {
      ptrace.setSigmask(this.tid, allSignals)
      this.#injecting = true
    }
  }

  #step(): bigint {
    for (;;) {
      try {
        return ptrace.syscallStep(this.tid, syscallTimeoutMs).result
      } catch (error) {
        if (!isKernelError(error, 'EINTR') || !ptrace.isUnexpectedStop(error)) throw error
        // A thread of a stopped process tells once more that it takes part in the group stop (do_jobctl_trap).
        if (error.stopEvent === ptrace.PTRACE_EVENT_STOP) continue
        // SIGSTOP cannot be blocked, and the mark of a table is not. Such a signal is held until the thread has its own state again.
        if (error.stopSignal === 0 || this.#heldStop !== 0) throw error
        this.#heldStop = error.stopSignal
      }
    }
  }

  /**
   * Ends injection. The thread is as it was found, in a stop inside get_signal. Once it is resumed, the kernel restarts
   * an interrupted call by its own rules.
   */
  leave(): void {
    if (!this.#injecting) {
      ptrace.setRegs(this.tid, this.regs)
      return
    }
    ptrace.setSigmask(this.tid, this.mask)
    ptrace.interrupt(this.tid)
    ptrace.resume(this.tid, 'cont', 0)
    const stop = ptrace.wait(this.tid, stopTimeoutMs)
    if (stop.kind !== 'stopped') throw new PageferryError('WORKLOAD_EXITED', `thread ${this.tid} exited`)
    ptrace.setRegs(this.tid, this.regs)
    this.#injecting = false
    this.#site.owner = null
    if (this.#heldStop !== 0) {
      processes.tgkill(this.#site.pid, this.tid, this.#heldStop)
      this.#heldStop = 0
    }
  }
}

export function remoteError(name: string, errno: number, tid: number): Error {
  return Object.assign(new Error(`${name} in the process (tid ${tid}) failed with ${errnoName(errno)}`), {
    code: errnoName(errno),
    errno,
    syscall: name,
    pid: tid,
  })
}

/** Duplicates a descriptor of the workload into this process. */
export function takeFd(pidfd: number, fd: number): number {
  return fds.pidfdGetfd(pidfd, fd)
}

function remaining({ regs, deadlineNs }: Wait): Remaining {
  if (deadlineNs === null) return { regs }
  return withRemaining(regs, deadlineNs, processes.clockGettime(processes.CLOCK_MONOTONIC))
}

/** With syscall user dispatch the thread would get SIGSYS for each injected call. */
function requireOwnSyscalls(tid: number): void {
  let mode = 0
  try {
    mode = ptrace.getUserDispatch(tid)
  } catch (error) {
    // Kernels before Linux 6.4 do not know the request.
    if (!isKernelError(error, 'EIO')) throw error
  }
  if (mode === 0) return
  throw new PageferryError(
    'REFUSED',
    `thread ${tid} dispatches its own system calls (PR_SET_SYSCALL_USER_DISPATCH)`,
  )
}

/** Another thread may have unmapped the timeout of a wait. The call will then see that itself; until then it reads as zeros. */
function readTimeout(memFd: number, address: bigint, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  ifMapped(() => memory.pread(memFd, address, bytes))
  return bytes
}

function ifMapped(act: () => void): void {
  try {
    act()
  } catch (error) {
    if (!isKernelError(error)) throw error
  }
}

function writeMemory(memFd: number, address: bigint, bytes: Uint8Array): void {
  memory.pwrite(memFd, address, bytes)
}

/**
 * Moves a thread that was stopped inside a restartable sequence to its abort handler, as after any preemption. An
 * injected system call makes the kernel forget the sequence (it clears rseq_cs without the abort), so we must do it
 * here. Another processor or machine is a migration that the sequence must notice
 * (Documentation/userspace-api/rseq.rst).
 */
function leaveRestartableSequence(tid: number, memFd: number, regs: BigUint64Array): BigUint64Array {
  const { address } = ptrace.getRseqConfiguration(tid)
  if (address === 0n) return regs
  const pointer = new BigUint64Array(1)
  if (memory.pread(memFd, address + 8n, bytesOf(pointer)) !== 8 || pointer[0] === 0n) return regs
  // struct rseq_cs { u32 version, flags; u64 start_ip, post_commit_offset, abort_ip; }
  const section = new BigUint64Array(4)
  if (memory.pread(memFd, pointer[0], bytesOf(section)) !== 32) return regs
  const [, start, length, abort] = section
  const rip = regs[REG.rip]
  if (rip < start || rip >= start + length) return regs
  const aborted = regs.slice()
  aborted[REG.rip] = abort
  return aborted
}

function bytesOf(array: BigUint64Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength)
}
