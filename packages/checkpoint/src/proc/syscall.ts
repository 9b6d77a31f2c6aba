import { readFileSync } from 'node:fs'

/** The system call that a thread sleeps in, with the six arguments in its registers. */
export interface ProcSyscall {
  nr: number
  args: bigint[]
}

/**
 * Parses /proc/PID/task/TID/syscall (proc_pid_syscall(5)). Null: it runs, or sleeps elsewhere, for example in a page
 * fault.
 */
export function parseSyscall(text: string): ProcSyscall | null {
  const [nr, ...rest] = text.trim().split(' ')
  // "running", or -1 with the stack pointer and the program counter only.
  if (!/^\d+$/.test(nr) || rest.length < 6) return null
  return { nr: Number(nr), args: rest.slice(0, 6).map(BigInt) }
}

/** @throws ENOENT or ESRCH: the thread is gone */
export function readSyscall(pid: number, tid: number): ProcSyscall | null {
  return parseSyscall(readFileSync(`/proc/${pid}/task/${tid}/syscall`, 'utf8'))
}
