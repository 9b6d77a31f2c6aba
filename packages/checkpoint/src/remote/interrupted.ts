import { readFileSync } from 'node:fs'
import { processes, ptrace } from '@pageferry/kernel'
import { EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTNOINTR, ERESTARTSYS } from './errno.js'
import { SYS } from './syscalls.js'

/**
 * Threads that were stopped inside a system call.
 *
 * A ptrace stop interrupts a blocking call like a signal does. The value in rax decides what the program must see
 * (signal(7), "Interruption of system calls", and arch_do_signal_or_restart in the kernel):
 *
 *   -512 -513 -514   start the call again with the same registers. We leave it to the kernel, which knows better
 *                    whether a handler that runs first turns it into EINTR.
 *   -516             the kernel remembers the deadline in the thread's restart block. That is exact on the source;
 *                    the destination has no such block, so the call is made again with the remaining time.
 *   -4               calls that do not restart after any signal. If no signal is there to be delivered,
 *                    only our stop can be the cause: the call is made again.
 */

const { REG } = ptrace

export function signed(value: bigint): bigint {
  return BigInt.asIntN(64, value)
}

/** The number of the system call the thread is stopped in, or -1. */
export function interruptedCall(regs: BigUint64Array): number {
  return Number(signed(regs[REG.orig_rax]))
}

const neverRestarted = new Set<number>([
  SYS.epoll_wait,
  SYS.epoll_pwait,
  SYS.epoll_pwait2,
  SYS.rt_sigtimedwait,
  SYS.semop,
  SYS.semtimedop,
  SYS.accept,
  SYS.accept4,
  SYS.recvfrom,
  SYS.recvmsg,
  SYS.recvmmsg,
  SYS.msgrcv,
  SYS.msgsnd,
  SYS.io_getevents,
])

/** Registers with which the *kernel* resumes the thread correctly from a stop inside get_signal. */
export function repairSpuriousEintr(regs: BigUint64Array, signalDeliverable: boolean): BigUint64Array {
  const repaired = regs.slice()
  if (signed(regs[REG.rax]) === EINTR && neverRestarted.has(interruptedCall(regs)) && !signalDeliverable) {
    // Still EINTR if a handler runs before the call does: programs rely on that to look at a flag.
    repaired[REG.rax] = BigInt.asUintN(64, ERESTARTNOHAND)
  }
  return repaired
}

/** Calls of `neverRestarted` with a relative timeout: its register, and whether it is milliseconds or a timespec. */
const timeoutOf = new Map<number, { register: number; milliseconds: boolean }>([
  [SYS.epoll_wait, { register: REG.r10, milliseconds: true }],
  [SYS.epoll_pwait, { register: REG.r10, milliseconds: true }],
  [SYS.epoll_pwait2, { register: REG.r10, milliseconds: false }],
  [SYS.rt_sigtimedwait, { register: REG.rdx, milliseconds: false }],
  [SYS.semtimedop, { register: REG.r10, milliseconds: false }],
  [SYS.io_getevents, { register: REG.r8, milliseconds: false }],
])

/**
 * Gives a repaired call the remaining time. Otherwise it would wait for its whole timeout again, after every stop. This
 * is needed on the source, too, because the kernel keeps no deadline for it.
 *
 * @param regs as `repairSpuriousEintr` gave them
 * @param read reads a timespec of the workload, in ns
 */
export function withRemainingWait(
  regs: BigUint64Array,
  elapsedNs: bigint,
  read: (address: bigint) => bigint,
): RelativeTimeout {
  const timeout = timeoutOf.get(interruptedCall(regs))
  if (timeout === undefined || signed(regs[REG.rax]) !== ERESTARTNOHAND) return { regs }
  const { register, milliseconds } = timeout
  const out = regs.slice()
  if (milliseconds) {
    const ms = BigInt.asIntN(32, regs[register])
    if (ms > 0n) out[register] = (remainingNs(ms * 1_000_000n, elapsedNs) + 999_999n) / 1_000_000n
    return { regs: out }
  }
  if (regs[register] === 0n) return { regs }
  const ns = remainingNs(read(regs[register]), elapsedNs)
  out[register] = belowRedZone(regs)
  return { regs: out, timespec: { address: out[register], ns } }
}

/** The place where the kernel itself would put a signal frame, 16 bytes aligned. */
function belowRedZone(regs: BigUint64Array): bigint {
  return (regs[REG.rsp] - 256n) & ~15n
}

/** Never returns 0: that would not be a wait any more. */
function remainingNs(totalNs: bigint, elapsedNs: bigint): bigint {
  return totalNs > elapsedNs ? totalNs - elapsedNs : 1n
}

/** Makes the same decision in user registers, for a thread that must go on without the kernel's help. */
export function rewound(regs: BigUint64Array): BigUint64Array {
  const resume = regs.slice()
  const nr = interruptedCall(regs)
  resume[REG.orig_rax] = BigInt.asUintN(64, -1n)
  if (nr < 0) return resume
  switch (signed(regs[REG.rax])) {
    case ERESTARTSYS:
    case ERESTARTNOINTR:
    case ERESTARTNOHAND:
      resume[REG.rax] = BigInt(nr)
      resume[REG.rip] -= 2n
      break
    case ERESTART_RESTARTBLOCK:
      resume[REG.rax] = BigInt(SYS.restart_syscall)
      resume[REG.rip] -= 2n
      break
  }
  return resume
}

/** /proc/PID/task/TID/sched: when the thread last ran, by the clock of its processor, and how often it has waited. */
export interface SchedulerFacts {
  execStartNs: bigint
  voluntarySwitches: number
}

export function schedulerFacts(task: string): SchedulerFacts {
  const text = readFileSync(`${task}/sched`, 'utf8')
  const m = /^se\.exec_start\s*:\s*(\d+)\.(\d+)/m.exec(text)
  const switches = /^nr_voluntary_switches\s*:\s*(\d+)/m.exec(text)
  return {
    execStartNs: m === null ? 0n : BigInt(m[1]) * 1_000_000n + BigInt(m[2].padEnd(6, '0').slice(0, 6)),
    voluntarySwitches: Number(switches?.[1] ?? 0),
  }
}

/** The processor on which a thread ran last: field 39 of its stat (proc_pid_stat(5)). */
export function lastProcessor(task: string): number {
  const text = readFileSync(`${task}/stat`, 'utf8')
  return Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[36])
}

/**
 * CLOCK_MONOTONIC minus the scheduler's clock, in ns, by processor. Each processor has a clock of its own, which stands
 * still while a hypervisor or an interrupt uses the processor. The clocks are seconds apart on a machine that is up for
 * days. So we run for a moment where the thread ran.
 *
 * We read one clock after the other, and the time in between makes the offset too large. A sleep then seems shorter
 * than it was: a wait may last longer than requested, but it never ends early.
 */
export class SchedulerClocks {
  readonly #offsets = new Map<number, bigint | null>()

  /** Takes about half a millisecond, longer if the processor is busy. */
  measure(processor: number): void {
    if (!this.#offsets.has(processor)) this.#offsets.set(processor, measureOffset(processor))
  }

  /** null: not measured, or we may not run on that processor. */
  offset(processor: number): bigint | null {
    return this.#offsets.get(processor) ?? null
  }
}

function measureOffset(processor: number): bigint | null {
  const own = processes.getAffinity(0)
  const only = new Uint8Array(own.length)
  if (processor >> 3 >= own.length) return null
  only[processor >> 3] = 1 << (processor & 7)
  try {
    processes.setAffinity(0, only)
  } catch {
    return null
  }
  try {
    // Our own exec_start is fresh only right after we were scheduled.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 0.05)
    const { execStartNs } = schedulerFacts('/proc/thread-self')
    return processes.clockGettime(processes.CLOCK_MONOTONIC) - execStartNs
  } finally {
    processes.setAffinity(0, own)
  }
}

/** op without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME */
const futexCommandMask = 0x7fn
const futexWait = 0n

export interface RelativeTimeout {
  regs: BigUint64Array
  /** Must be stored at `address` before the thread runs. */
  timespec?: { address: bigint; ns: bigint }
}

/**
 * Registers for another kernel: -516 becomes a call with the remaining time. The timespec goes below the red zone,
 * where the kernel itself would put a signal frame. It is read as soon as the thread runs.
 *
 * @param nr the call, even if the thread was stopped in restart_syscall
 * @param elapsedNs time slept so far
 * @param read reads a timespec of the workload, in ns
 */
export function withRemainingTime(
  regs: BigUint64Array,
  nr: number,
  elapsedNs: bigint,
  read: (address: bigint) => bigint,
): RelativeTimeout {
  if (signed(regs[REG.rax]) !== ERESTART_RESTARTBLOCK) return { regs }
  const out = regs.slice()
  out[REG.orig_rax] = BigInt(nr)
  out[REG.rax] = BigInt.asUintN(64, ERESTARTNOHAND)
  const address = belowRedZone(regs)
  const remaining = (total: bigint): bigint => remainingNs(total, elapsedNs)
  const replace = (register: number): RelativeTimeout => {
    const ns = remaining(read(regs[register]))
    out[register] = address
    return { regs: out, timespec: { address, ns } }
  }
  switch (nr) {
    case SYS.nanosleep:
      if (regs[REG.rsi] === 0n) return replace(REG.rdi)
      out[REG.rdi] = regs[REG.rsi] // the kernel wrote the remaining time there
      return { regs: out }
    case SYS.clock_nanosleep:
      if (regs[REG.r10] === 0n) return replace(REG.rdx)
      out[REG.rdx] = regs[REG.r10]
      return { regs: out }
    case SYS.poll: {
      const ms = BigInt.asIntN(32, regs[REG.rdx])
      if (ms >= 0n) out[REG.rdx] = (remaining(ms * 1_000_000n) + 999_999n) / 1_000_000n
      return { regs: out }
    }
    case SYS.futex:
      // FUTEX_WAIT has a relative timeout. FUTEX_WAIT_BITSET has an absolute one, which is right as it is (futex(2)).
      if ((regs[REG.rsi] & futexCommandMask) === futexWait && regs[REG.r10] !== 0n) return replace(REG.r10)
      return { regs: out }
    default:
      // An unknown restartable call: it may always return EINTR.
      out[REG.rax] = BigInt.asUintN(64, EINTR)
      return { regs: out }
  }
}
