import { addon } from './addon.js'

export * from './fcntl.js'

/** Descriptors: taken from other processes, compared, passed. All that are made here are close-on-exec. */

export const KCMP_FILE = 0
export const KCMP_VM = 1
export const KCMP_FILES = 2
export const KCMP_FS = 3
export const KCMP_SIGHAND = 4
export const KCMP_IO = 5
export const KCMP_SYSVSEM = 6

export const SOCK_STREAM = 1
export const SOCK_DGRAM = 2
export const SOCK_SEQPACKET = 5
export const SOCK_NONBLOCK = 0o4000

export const SO_TYPE = 3
export const SO_DOMAIN = 39

export interface Received {
  /** Empty and without descriptors when the peer closed the connection. */
  bytes: Uint8Array
  /** The receiver owns them. */
  fds: number[]
}

interface Binding {
  pidfdOpen(pid: number): number
  pidfdGetfd(pidfd: number, fd: number): number
  pidfdSendSignal(pidfd: number, signal: number): void
  pidfdExitCode(pidfd: number): number
  kcmp(pid1: number, pid2: number, type: number, a: number | bigint, b: number | bigint): -1 | 0 | 1 | 2
  socketpair(type: number): [number, number]
  listenUnix(path: string, type: number): number
  acceptUnix(fd: number): number
  connectUnix(path: string, type: number): number
  send(sock: number, bytes: Uint8Array, fds: number[]): void
  recv(sock: number, maxBytes: number, maxFds: number, timeoutMs: number): Received
  fcntl(fd: number, command: number, argument: number): number
  setReceiveLowWater(fd: number, bytes: number): void
  getSocketOption(fd: number, option: number): number
  dup(fd: number): number
  lseek(fd: number, offset: bigint, whence: number): bigint
  listXattr(fd: number): string
  punchHole(fd: number, offset: number, length: number): void
  setTimes(fd: number, accessNs: bigint, modificationNs: bigint): void
  flock(fd: number, operation: number): void
  canLock(fd: number, type: number, start: bigint, length: bigint): boolean
  pipe2(flags: number): [number, number]
  eventfd(flags: number): number
  timerfd(clockId: number, flags: number): number
  timerfdUpdate(fd: number): void
  tee(from: number, to: number, length: number): number
  open(path: string, flags: number, mode: number): number
  memfdCreate(name: string): number
  mapShared(fd: number, length: number): Uint8Array
}

const native = addon.fd as Binding

export function pidfdOpen(pid: number): number {
  return native.pidfdOpen(pid)
}

/** Duplicates a descriptor of another process (ptrace permission needed); both share the file description. */
export function pidfdGetfd(pidfd: number, fd: number): number {
  return native.pidfdGetfd(pidfd, fd)
}

/** Sends a signal. Signal 0 only checks whether the process exists (ESRCH). */
/**
 * The wait status (wait(2)) of a process that was reaped, by PIDFD_GET_INFO (Linux 6.15). -1: it was not reaped, or the kernel
 * does not tell.
 */
export function pidfdExitCode(pidfd: number): number {
  return native.pidfdExitCode(pidfd)
}

export function pidfdSendSignal(pidfd: number, signal: number): void {
  native.pidfdSendSignal(pidfd, signal)
}

/** kcmp(2): 0 the same kernel object; -1 or 1 a sort order; 2 different without an order. */
export function kcmp(
  pid1: number,
  pid2: number,
  type: number,
  a: number | bigint = 0,
  b: number | bigint = 0,
): -1 | 0 | 1 | 2 {
  return native.kcmp(pid1, pid2, type, a, b)
}

export function socketpair(type: number): [number, number] {
  return native.socketpair(type)
}

/** Binds and listens. EADDRINUSE if the path exists, even without a listener behind it. */
export function listenUnix(path: string, type: number): number {
  return native.listenUnix(path, type)
}

/** Blocks, unless a connection is waiting or the listener was made with SOCK_NONBLOCK (EAGAIN). */
export function acceptUnix(fd: number): number {
  return native.acceptUnix(fd)
}

export function connectUnix(path: string, type: number): number {
  return native.connectUnix(path, type)
}

/** Sends one message with at most 253 descriptors, which stay open here. */
export function send(sock: number, bytes: Uint8Array, fds: number[] = []): void {
  native.send(sock, bytes, fds)
}

/**
 * Receives one message. Blocks the thread up to `timeoutMs` (-1: for ever), then throws ETIMEDOUT. A message that is
 * larger than the limits is dropped with EMSGSIZE, and its descriptors are closed.
 */
export function recv(sock: number, maxBytes: number, maxFds: number, timeoutMs: number): Received {
  return native.recv(sock, maxBytes, maxFds, timeoutMs)
}

/** fcntl(2), for commands whose argument is an integer or absent. */
export function fcntl(fd: number, command: number, argument = 0): number {
  return native.fcntl(fd, command, argument)
}

/**
 * SO_RCVLOWAT of socket(7): the socket becomes readable only with this many bytes, or at the end of the stream. For
 * TCP, epoll honours it since Linux 4.18, and the kernel enlarges the receive buffer as needed.
 */
export function setReceiveLowWater(fd: number, bytes: number): void {
  native.setReceiveLowWater(fd, bytes)
}

/** An int of the level SOL_SOCKET (socket(7)), by its number in asm-generic/socket.h. */
export function getSocketOption(fd: number, option: number): number {
  return native.getSocketOption(fd, option)
}

/** Duplicates a descriptor, to number 64 or higher. */
export function dup(fd: number): number {
  return native.dup(fd)
}

/** ESPIPE for files that cannot seek; ENXIO when SEEK_DATA or SEEK_HOLE find nothing. */
export function lseek(fd: number, offset: bigint, whence: number): bigint {
  return native.lseek(fd, offset, whence)
}

/** Names of the extended attributes, ACLs among them (flistxattr(2)). EOPNOTSUPP where there are none. */
export function listXattr(fd: number): string[] {
  return native.listXattr(fd).split('\0').filter(Boolean)
}

/** fallocate(2): the bytes read as zeros afterwards and take no room; the size stays. EOPNOTSUPP where holes are unknown. */
export function punchHole(fd: number, offset: number, length: number): void {
  native.punchHole(fd, offset, length)
}

/** futimens(3), in nanoseconds since 1970; negative ones are before. */
export function setTimes(fd: number, accessNs: bigint, modificationNs: bigint): void {
  native.setTimes(fd, accessNs, modificationNs)
}

/** flock(2); EAGAIN with LOCK_NB where another description has the lock. */
export function flock(fd: number, operation: number): void {
  native.flock(fd, operation)
}

/** Whether this description could lock a range now (fcntl(2), F_OFD_GETLK). A length of 0 is up to the end of the file. */
export function canLock(fd: number, type: number, start: bigint, length: bigint): boolean {
  return native.canLock(fd, type, start, length)
}

/** [read end, write end] */
export function pipe2(flags: number): [number, number] {
  return native.pipe2(flags)
}

/** Makes a counter of 0 (eventfd(2)); the flags are EFD_SEMAPHORE and EFD_NONBLOCK. */
export function eventfd(flags: number): number {
  return native.eventfd(flags)
}

/** Makes a timer that is not armed (timerfd_create(2)); the flag is TFD_NONBLOCK. */
export function timerfd(clockId: number, flags: number): number {
  return native.timerfd(clockId, flags)
}

/**
 * timerfd_gettime(2). Before such a call a periodic timer that has expired counts only one expiration, and its fdinfo shows no
 * time that is left.
 */
export function timerfdUpdate(fd: number): void {
  native.timerfdUpdate(fd)
}

/** Copies up to `length` bytes between pipes without consuming them. Throws EAGAIN where it would block. */
export function tee(from: number, to: number, length: number): number {
  return native.tee(from, to, length)
}

/** open(2) with raw flags, which node:fs does not promise to pass on (O_PATH, O_TMPFILE). */
export function open(path: string, flags: number, mode = 0): number {
  return native.open(path, flags, mode)
}

/** Makes an anonymous file that can be sealed. */
export function memfdCreate(name: string): number {
  return native.memfdCreate(name)
}

/**
 * Maps the first `length` bytes of a file, shared and writable; unmapped when collected. The file must not become
 * shorter: touching a byte that is gone raises SIGBUS.
 */
export function mapShared(fd: number, length: number): Uint8Array {
  return native.mapShared(fd, length)
}
