import { ptrace } from '@pageferry/kernel'
import { EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND } from './errno.js'
import { interruptedCall, signed } from './interrupted.js'
import { SYS } from './syscalls.js'

/**
 * Waits with a relative timeout. A stopped thread's wait must end when it would have ended without the stop.
 *
 *   nanosleep, clock_nanosleep,     The kernel keeps the deadline in the thread's restart block (-516). That is exact on
 *   poll, FUTEX_WAIT                the source; another kernel has no such block.
 *   ppoll, select, pselect          The kernel has written the time that was left at the stop over the timeout.
 *   epoll_wait, sigtimedwait, ...   EINTR: the kernel knows nothing any more (repairSpuriousEintr).
 *
 * So each wait gets a deadline when the thread is stopped. The call is made again when the thread goes on, here or there,
 * with the time that remains at that moment. An absolute call would need no such moment, but a signal handler may interrupt
 * it, and then only the relative call tells the program how much was left.
 */

const { REG } = ptrace

interface Timeout {
  /** The register with the timeout, or with its address. */
  register: number
  form: 'milliseconds' | 'timespec' | 'timeval'
  /** The register with the address where the kernel writes the time that is left. */
  rest?: number
}

const timeouts = new Map<number, Timeout>([
  [SYS.nanosleep, { register: REG.rdi, form: 'timespec', rest: REG.rsi }],
  [SYS.clock_nanosleep, { register: REG.rdx, form: 'timespec', rest: REG.r10 }],
  [SYS.poll, { register: REG.rdx, form: 'milliseconds' }],
  [SYS.futex, { register: REG.r10, form: 'timespec' }],
  [SYS.ppoll, { register: REG.rdx, form: 'timespec' }],
  [SYS.select, { register: REG.r8, form: 'timeval' }],
  [SYS.pselect6, { register: REG.r8, form: 'timespec' }],
  [SYS.epoll_wait, { register: REG.r10, form: 'milliseconds' }],
  [SYS.epoll_pwait, { register: REG.r10, form: 'milliseconds' }],
  [SYS.epoll_pwait2, { register: REG.r10, form: 'timespec' }],
  [SYS.rt_sigtimedwait, { register: REG.rdx, form: 'timespec' }],
  [SYS.semtimedop, { register: REG.r10, form: 'timespec' }],
  [SYS.io_getevents, { register: REG.r8, form: 'timespec' }],
])

const withRestartBlock = new Set<number>([SYS.nanosleep, SYS.clock_nanosleep, SYS.poll, SYS.futex])
/** poll_select_finish in the kernel. If it cannot write, they end with EINTR. */
const writtenBack = new Set<number>([SYS.ppoll, SYS.select, SYS.pselect6])

/** Calls of which it must be known when a thread began to sleep in them. */
export const timedCalls = new Set<number>([SYS.restart_syscall, ...timeouts.keys()])

/** op without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME */
const futexCommandMask = 0x7fn
const futexWait = 0n
/** A wait of a century is one without end. With it the sums stay in 64 bits. */
const endlessNs = 1n << 62n
/** struct timespec, struct timeval */
export const timeBytes = 16

/** A thread's wait, as it was found in a stop. */
export interface Wait {
  /** Registers with which the call is made again. Their timeout is out of date, see `withRemaining`. */
  regs: BigUint64Array
  /** By our CLOCK_MONOTONIC; null: the call has no relative timeout, or none that can be known. */
  deadlineNs: bigint | null
  /** The kernel here knows the deadline, too: on the source the thread goes on as it was found. */
  isInKernel: boolean
}

export interface Interruption {
  /** The call, even if the thread was stopped in restart_syscall. */
  nr: number
  /** The stop has turned into EINTR what must be made again. */
  isRepaired: boolean
  /** When the thread began to sleep, and a moment at which it stood still, by our CLOCK_MONOTONIC. */
  beganNs: bigint
  stoppedNs: bigint
}

/**
 * @param regs as `repairSpuriousEintr` gave them
 * @param read reads memory of the workload
 * @returns null: the thread was in no such wait
 */
export function waitOf(
  regs: BigUint64Array,
  interruption: Interruption,
  read: (address: bigint, length: number) => Buffer,
): Wait | null {
  const { nr, isRepaired, beganNs, stoppedNs } = interruption
  const error = signed(regs[REG.rax])
  if (error === ERESTART_RESTARTBLOCK) return { ...withoutBlock(regs, interruption, read), isInKernel: true }
  const timeout = timeouts.get(nr)
  if (error !== ERESTARTNOHAND || timeout === undefined) return null
  if (isRepaired) return { ...from(beganNs, regs, timeout, read), isInKernel: false }
  const address = regs[timeout.register]
  if (!writtenBack.has(nr) || address === 0n) return null
  return { regs, deadlineNs: stoppedNs + nsOf(timeout, read(address, timeBytes)), isInKernel: false }
}

/** -516 becomes a call that another kernel understands. */
function withoutBlock(
  regs: BigUint64Array,
  { nr, beganNs, stoppedNs }: Interruption,
  read: (address: bigint, length: number) => Buffer,
): Omit<Wait, 'isInKernel'> {
  const again = regs.slice()
  again[REG.orig_rax] = BigInt(nr)
  again[REG.rax] = BigInt.asUintN(64, ERESTARTNOHAND)
  const timeout = timeouts.get(nr)
  if (timeout === undefined || !withRestartBlock.has(nr)) {
    // An unknown restartable call: it may always return EINTR.
    again[REG.rax] = BigInt.asUintN(64, EINTR)
    return { regs: again, deadlineNs: null }
  }
  // FUTEX_WAIT_BITSET has an absolute timeout, which is right as it is (futex(2)).
  if (nr === SYS.futex && (regs[REG.rsi] & futexCommandMask) !== futexWait) {
    return { regs: again, deadlineNs: null }
  }
  const rest = timeout.rest === undefined ? 0n : regs[timeout.rest]
  if (nr === SYS.clock_nanosleep && countsProcessorTime(regs[REG.rdi])) {
    if (rest !== 0n) again[timeout.register] = rest
    return { regs: again, deadlineNs: null }
  }
  if (rest === 0n) return from(beganNs, again, timeout, read)
  again[timeout.register] = belowRedZone(regs)
  return { regs: again, deadlineNs: stoppedNs + nsOf(timeout, read(rest, timeBytes)) }
}

/** CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, and the negative numbers of clock_getcpuclockid(3). */
function countsProcessorTime(clock: bigint): boolean {
  const id = BigInt.asIntN(32, clock)
  return id < 0n || id === 2n || id === 3n
}

/** A wait that began then, with the whole timeout. */
function from(
  beganNs: bigint,
  regs: BigUint64Array,
  timeout: Timeout,
  read: (address: bigint, length: number) => Buffer,
): Omit<Wait, 'isInKernel'> {
  const { register, form } = timeout
  if (form === 'milliseconds') {
    const ms = BigInt.asIntN(32, regs[register])
    return { regs, deadlineNs: ms < 0n ? null : beganNs + ms * 1_000_000n }
  }
  if (regs[register] === 0n) return { regs, deadlineNs: null }
  const ns = nsOf(timeout, read(regs[register], timeBytes))
  if (ns > endlessNs) return { regs, deadlineNs: null }
  const again = regs.slice()
  again[register] = belowRedZone(regs)
  return { regs: again, deadlineNs: beganNs + ns }
}

/** The place where the kernel itself would put a signal frame, 16 bytes aligned. The call reads it as soon as the thread runs. */
function belowRedZone(regs: BigUint64Array): bigint {
  return (regs[REG.rsp] - 256n) & ~15n
}

function nsOf({ form }: Timeout, time: Buffer): bigint {
  const fraction = time.readBigInt64LE(8)
  return time.readBigInt64LE(0) * 1_000_000_000n + (form === 'timeval' ? fraction * 1000n : fraction)
}

export interface Remaining {
  regs: BigUint64Array
  /** Must be stored before the thread runs. */
  time?: { address: bigint; bytes: Buffer }
}

/**
 * Gives a call that is made again the time until its deadline, by the clock that `nowNs` is of. Never 0: that would not be
 * a wait any more.
 *
 * @param regs of a `Wait`
 */
export function withRemaining(regs: BigUint64Array, deadlineNs: bigint, nowNs: bigint): Remaining {
  const timeout = timeouts.get(interruptedCall(regs))
  if (timeout === undefined) return { regs }
  const ns = deadlineNs > nowNs ? deadlineNs - nowNs : 1n
  if (timeout.form === 'milliseconds') {
    const out = regs.slice()
    out[timeout.register] = roundUp(ns, 1_000_000n)
    return { regs: out }
  }
  const bytes = Buffer.alloc(timeBytes)
  const units = timeout.form === 'timeval' ? roundUp(ns, 1000n) : ns
  const perSecond = timeout.form === 'timeval' ? 1_000_000n : 1_000_000_000n
  bytes.writeBigInt64LE(units / perSecond, 0)
  bytes.writeBigInt64LE(units % perSecond, 8)
  return { regs, time: { address: regs[timeout.register], bytes } }
}

function roundUp(ns: bigint, unit: bigint): bigint {
  return (ns + unit - 1n) / unit
}

/** Memory that holds the timeout of a call that is made again; null: a register does. */
export function timeAddress(regs: BigUint64Array): bigint | null {
  const timeout = timeouts.get(interruptedCall(regs))
  return timeout === undefined || timeout.form === 'milliseconds' ? null : regs[timeout.register]
}
