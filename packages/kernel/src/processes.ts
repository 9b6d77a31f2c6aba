/** Attributes of a process as a whole. A `tid` or `pid` of 0 means the caller. Errors are kernel errors. */
import { addon } from './addon.js'

export interface ResourceLimit {
  soft: bigint
  hard: bigint
}

export interface Scheduler {
  /** SCHED_OTHER 0, SCHED_FIFO 1, SCHED_RR 2, SCHED_BATCH 3, SCHED_IDLE 5; SCHED_RESET_ON_FORK is bit 30. */
  policy: number
  priority: number
}

/** struct sched_attr (sched_setattr(2)). Times are in ns. */
export interface SchedulerAttributes {
  policy: number
  /** SCHED_FLAG_*. */
  flags: bigint
  nice: number
  priority: number
  /** Of SCHED_DEADLINE; of the fair policies the slice, from Linux 6.12 on (0 before). */
  runtimeNs: bigint
  deadlineNs: bigint
  periodNs: bigint
  /** 0 to 1024; both 0 in a kernel without utilization clamping. */
  utilMin: number
  utilMax: number
}

export interface CpuXfeatures {
  /** State components that the operating system enabled (XGETBV); 0 without XSAVE. */
  xcr0: bigint
  /** Bytes of the XSAVE area for them. */
  size: number
}

interface Native {
  prlimit(pid: number, resource: number, soft?: bigint, hard?: bigint): ResourceLimit
  getPriority(tid: number): number
  setPriority(tid: number, nice: number): void
  getAffinity(tid: number): Uint8Array
  setAffinity(tid: number, mask: Uint8Array): void
  getScheduler(tid: number): Scheduler
  setScheduler(tid: number, policy: number, priority: number): void
  schedGetattr(tid: number): Uint8Array
  schedSetattr(tid: number, attr: Uint8Array): void
  getIoprio(tid: number): number
  setIoprio(tid: number, ioprio: number): void
  getsid(pid: number): number
  getpgid(pid: number): number
  clockGettime(id: number): bigint
  tgkill(pid: number, tid: number, signal: number): void
  cpuXfeatures(): CpuXfeatures
}

const native = addon.processes as Native

/** RLIM_INFINITY: no limit. */
export const RLIM_INFINITY = 0xffff_ffff_ffff_ffffn
/** There are resources 0 (RLIMIT_CPU) to 15 (RLIMIT_RTTIME) on x86_64 (asm-generic/resource.h). */
export const RLIM_NLIMITS = 16
export const RLIMIT_STACK = 3
export const RLIMIT_NOFILE = 7
export const RLIMIT_MEMLOCK = 8

/** Ids for `clockGettime` (linux/time.h). */
export const CLOCK_REALTIME = 0
export const CLOCK_MONOTONIC = 1
export const CLOCK_BOOTTIME = 7

/** Returns the limit; if `limit` is given, the value before it was set. EPERM: raising needs CAP_SYS_RESOURCE. */
export function prlimit(pid: number, resource: number, limit?: ResourceLimit): ResourceLimit {
  return native.prlimit(pid, resource, limit?.soft, limit?.hard)
}

/** The nice value, -20 to 19. */
export function getPriority(tid: number): number {
  return native.getPriority(tid)
}

export function setPriority(tid: number, nice: number): void {
  native.setPriority(tid, nice)
}

/** CPUs that the thread may run on: bit n%8 of byte n>>3 stands for CPU n. As long as the kernel's own mask. */
export function getAffinity(tid: number): Uint8Array {
  return native.getAffinity(tid)
}

/** EINVAL when none of the CPUs exists here. */
export function setAffinity(tid: number, mask: Uint8Array): void {
  native.setAffinity(tid, mask)
}

export function getScheduler(tid: number): Scheduler {
  return native.getScheduler(tid)
}

export function setScheduler(tid: number, policy: number, priority: number): void {
  native.setScheduler(tid, policy, priority)
}

export function schedGetattr(tid: number): SchedulerAttributes {
  const bytes = Buffer.from(native.schedGetattr(tid))
  return {
    policy: bytes.readUInt32LE(4),
    flags: bytes.readBigUInt64LE(8),
    nice: bytes.readInt32LE(16),
    priority: bytes.readUInt32LE(20),
    runtimeNs: bytes.readBigUInt64LE(24),
    deadlineNs: bytes.readBigUInt64LE(32),
    periodNs: bytes.readBigUInt64LE(40),
    utilMin: bytes.readUInt32LE(48),
    utilMax: bytes.readUInt32LE(52),
  }
}

/** EPERM without CAP_SYS_NICE for another user's thread; EOPNOTSUPP for clamps that this kernel does not have. */
export function schedSetattr(tid: number, attr: SchedulerAttributes): void {
  const bytes = Buffer.alloc(56)
  bytes.writeUInt32LE(bytes.length, 0)
  bytes.writeUInt32LE(attr.policy, 4)
  bytes.writeBigUInt64LE(attr.flags, 8)
  bytes.writeInt32LE(attr.nice, 16)
  bytes.writeUInt32LE(attr.priority, 20)
  bytes.writeBigUInt64LE(attr.runtimeNs, 24)
  bytes.writeBigUInt64LE(attr.deadlineNs, 32)
  bytes.writeBigUInt64LE(attr.periodNs, 40)
  bytes.writeUInt32LE(attr.utilMin, 48)
  bytes.writeUInt32LE(attr.utilMax, 52)
  native.schedSetattr(tid, bytes)
}

/** I/O priority: class << 13 | level (linux/ioprio.h). */
export function getIoprio(tid: number): number {
  return native.getIoprio(tid)
}

export function setIoprio(tid: number, ioprio: number): void {
  native.setIoprio(tid, ioprio)
}

/** Session id as seen from our own pid namespace; 0 when the leader is outside of it. */
export function getsid(pid: number): number {
  return native.getsid(pid)
}

export function getpgid(pid: number): number {
  return native.getpgid(pid)
}

/** Nanoseconds of one of our own clocks, in our own time namespace. */
export function clockGettime(id: number): bigint {
  return native.clockGettime(id)
}

/** Sends a signal to one thread. */
export function tgkill(pid: number, tid: number, signal: number): void {
  native.tgkill(pid, tid, signal)
}

export function cpuXfeatures(): CpuXfeatures {
  return native.cpuXfeatures()
}
