/**
 * ptrace(2), one function per request. All calls for one tracee come from the OS thread that seized it: the main thread
 * of a worker process. Everything below `wait` needs a stopped tracee. ESRCH means that it is not stopped, not ours, or
 * gone. Failed calls throw kernel errors (see `isKernelError` in base).
 *
 * A tracee must not be a child that Node itself spawned in this process: libuv reaps its children with waitpid and
 * would take ptrace stops for exits.
 */
import type { KernelErrorLike } from '@pageferry/base'
import { addon } from './addon.js'

/** PTRACE_SEIZE and PTRACE_SETOPTIONS (linux/ptrace.h). */
export const PTRACE_O_TRACESYSGOOD = 0x1
export const PTRACE_O_TRACEFORK = 0x2
export const PTRACE_O_TRACEVFORK = 0x4
export const PTRACE_O_TRACECLONE = 0x8
export const PTRACE_O_TRACEEXEC = 0x10
export const PTRACE_O_TRACEVFORKDONE = 0x20
export const PTRACE_O_TRACEEXIT = 0x40
export const PTRACE_O_TRACESECCOMP = 0x80
export const PTRACE_O_EXITKILL = 0x10_0000
export const PTRACE_O_SUSPEND_SECCOMP = 0x20_0000

/** `event` of a stop. PTRACE_EVENT_STOP is the answer to `interrupt`, a group stop, or a new child's first stop. */
export const PTRACE_EVENT_FORK = 1
export const PTRACE_EVENT_VFORK = 2
export const PTRACE_EVENT_CLONE = 3
export const PTRACE_EVENT_EXEC = 4
export const PTRACE_EVENT_VFORK_DONE = 5
export const PTRACE_EVENT_EXIT = 6
export const PTRACE_EVENT_SECCOMP = 7
export const PTRACE_EVENT_STOP = 128

/** Index of each register in the result of `getRegs`: the order of struct user_regs_struct (sys/user.h). */
export const REG = {
  r15: 0,
  r14: 1,
  r13: 2,
  r12: 3,
  rbp: 4,
  rbx: 5,
  r11: 6,
  r10: 7,
  r9: 8,
  r8: 9,
  rax: 10,
  rcx: 11,
  rdx: 12,
  rsi: 13,
  rdi: 14,
  orig_rax: 15,
  rip: 16,
  cs: 17,
  eflags: 18,
  rsp: 19,
  ss: 20,
  fs_base: 21,
  gs_base: 22,
  ds: 23,
  es: 24,
  fs: 25,
  gs: 26,
} as const

export type RegisterName = keyof typeof REG

export type WaitStatus =
  /** `syscall`: a syscall stop (TRACESYSGOOD); `signal` is then plain SIGTRAP. */
  | { kind: 'stopped'; signal: number; event: number; syscall: boolean }
  | { kind: 'exited'; code: number }
  | { kind: 'signaled'; signal: number }

/** Code EINTR: the tracee stopped elsewhere or ended. Both numbers are 0 if `status` is no stop. */
export interface UnexpectedStopError extends KernelErrorLike {
  stopSignal: number
  stopEvent: number
  status: WaitStatus
}

export interface RseqConfiguration {
  /** Address of the thread's struct rseq; all fields are 0 when it registered none. */
  address: bigint
  size: number
  signature: number
  flags: number
}

interface Native {
  seize(tid: number, options: number): void
  interrupt(tid: number): void
  setOptions(tid: number, options: number): void
  detach(tid: number, signal: number): void
  resume(tid: number, how: string, signal: number): void
  wait(tid: number, timeoutMs: number): WaitStatus
  waitAny(timeoutMs: number): ({ tid: number } & WaitStatus) | null
  syscallStep(tid: number, timeoutMs: number): { nr: number; result: bigint }
  getRegs(tid: number): BigUint64Array
  setRegs(tid: number, regs: BigUint64Array): void
  getXstate(tid: number): Uint8Array
  setXstate(tid: number, bytes: Uint8Array): void
  getSigmask(tid: number): bigint
  setSigmask(tid: number, mask: bigint): void
  getSiginfo(tid: number): Uint8Array
  peekSiginfo(tid: number, shared: boolean): Uint8Array[]
  getRseqConfiguration(tid: number): RseqConfiguration
  getUserDispatch(tid: number): number
  getEventMessage(tid: number): bigint
  runToTrap(tid: number, timeoutMs: number): void
}

const native = addon.ptrace as Native

/** PTRACE_SEIZE: attaches without stopping. EPERM: not permitted, or another process traces it. */
export function seize(tid: number, options: number): void {
  native.seize(tid, options)
}

/** PTRACE_INTERRUPT: the stop arrives through `wait`, as PTRACE_EVENT_STOP with SIGTRAP. */
export function interrupt(tid: number): void {
  native.interrupt(tid)
}

export function setOptions(tid: number, options: number): void {
  native.setOptions(tid, options)
}

/** PTRACE_DETACH: the tracee runs on; `signal` (0: none) is delivered to it. */
export function detach(tid: number, signal = 0): void {
  native.detach(tid, signal)
}

/** PTRACE_CONT, PTRACE_SYSCALL, PTRACE_LISTEN or PTRACE_SINGLESTEP; `signal` (0: none) is delivered. */
export function resume(tid: number, how: 'cont' | 'syscall' | 'listen' | 'singlestep', signal = 0): void {
  native.resume(tid, how, signal)
}

/** Waits for the next change of one tracee and blocks this thread. Throws ETIMEDOUT, or ECHILD if it is not ours. */
export function wait(tid: number, timeoutMs: number): WaitStatus {
  return native.wait(tid, timeoutMs)
}

/**
 * Waits for the next change of any child or tracee of this process, also of those that Node spawned; null after the
 * timeout.
 */
export function waitAny(timeoutMs: number): ({ tid: number } & WaitStatus) | null {
  return native.waitAny(timeoutMs)
}

/**
 * Lets a tracee whose registers stand at a `syscall` instruction run exactly that instruction. It ends in the syscall's
 * exit stop. Needs PTRACE_O_TRACESYSGOOD. `result` is the kernel's return value (negative: -errno).
 *
 * Throws `UnexpectedStopError` when something else came first: a signal (block them before: `setSigmask`), an event
 * such as PTRACE_EVENT_FORK between entry and exit, the exit of a system call that the tracee was still in, or its end.
 */
export function syscallStep(tid: number, timeoutMs: number): { nr: number; result: bigint } {
  return native.syscallStep(tid, timeoutMs)
}

/** General registers; throws EOPNOTSUPP for a thread in 32-bit mode. */
export function getRegs(tid: number): BigUint64Array {
  return native.getRegs(tid)
}

export function setRegs(tid: number, regs: BigUint64Array): void {
  native.setRegs(tid, regs)
}

/** Floating point, vector and further state in XSAVE format (NT_X86_XSTATE), as long as this CPU's. */
export function getXstate(tid: number): Uint8Array {
  return native.getXstate(tid)
}

/** EFAULT when the length is not this kernel's: the state comes from a CPU with other features. */
export function setXstate(tid: number, bytes: Uint8Array): void {
  native.setXstate(tid, bytes)
}

/** Blocked signals: bit n-1 stands for signal n. */
export function getSigmask(tid: number): bigint {
  return native.getSigmask(tid)
}

export function setSigmask(tid: number, mask: bigint): void {
  native.setSigmask(tid, mask)
}

/** siginfo_t (128 bytes) of the stop: of the signal to be delivered, or made up by ptrace for other stops. */
export function getSiginfo(tid: number): Uint8Array {
  return native.getSiginfo(tid)
}

/** siginfo_t of every pending signal, of the whole process (`shared`) or of this thread. Nothing is consumed. */
export function peekSiginfo(tid: number, shared: boolean): Uint8Array[] {
  return native.peekSiginfo(tid, shared)
}

/** PTRACE_GET_RSEQ_CONFIGURATION. EIO on kernels before 5.13 and those without rseq. */
export function getRseqConfiguration(tid: number): RseqConfiguration {
  return native.getRseqConfiguration(tid)
}

/**
 * PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: PR_SYS_DISPATCH_OFF (0), or how the thread's system calls are dispatched to
 * itself. EIO on kernels before 6.4.
 */
export function getUserDispatch(tid: number): number {
  return native.getUserDispatch(tid)
}

/** PTRACE_GETEVENTMSG: the value that belongs to the stop's event, such as the new child's tid or the exit status. */
export function getEventMessage(tid: number): bigint {
  return native.getEventMessage(tid)
}

/** Continues the tracee up to its own int3 (SIGTRAP). Throws `UnexpectedStopError` when anything else came. */
export function runToTrap(tid: number, timeoutMs: number): void {
  native.runToTrap(tid, timeoutMs)
}

/** Whether `error` came from `syscallStep` or `runToTrap` because the tracee did something else. */
export function isUnexpectedStop(error: unknown): error is UnexpectedStopError {
  return error instanceof Error && 'stopSignal' in error && 'stopEvent' in error
}
