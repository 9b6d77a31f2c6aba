import { constants } from 'node:os'

const names = new Map<number, string>(Object.entries(constants.errno).map(([name, nr]) => [nr, name]))

export function errnoName(errno: number): string {
  return names.get(errno) ?? `errno ${errno}`
}

/**
 * Values in rax that only a tracer sees, of a thread stopped inside a system call (include/linux/errno.h). The kernel
 * turns them into a restart or EINTR on the way to user mode.
 */
export const ERESTARTSYS = -512n
export const ERESTARTNOINTR = -513n
export const ERESTARTNOHAND = -514n
export const ERESTART_RESTARTBLOCK = -516n
export const EINTR = -4n
