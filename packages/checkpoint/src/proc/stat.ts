import { readFileSync } from 'node:fs'

/** USER_HZ, in which the kernel shows times to programs. */
export const ticksPerSecond = 100

/** Fields of /proc/PID/stat that a checkpoint needs (proc_pid_stat(5), numbers there are 1-based). */
export interface ProcStat {
  comm: string
  state: string
  ppid: number
  pgrp: number
  session: number
  ttyNr: number
  flags: number
  /** Processor time of all threads, also of those that have ended; in clock ticks. */
  cpuTicks: number
  nrThreads: number
  /** Clock ticks since boot: identifies the process together with its pid. */
  startTime: bigint
  startCode: bigint
  endCode: bigint
  startStack: bigint
  startData: bigint
  endData: bigint
  startBrk: bigint
  argStart: bigint
  argEnd: bigint
  envStart: bigint
  envEnd: bigint
  /** Of a zombie: its wait status (wait(2)). */
  exitCode: number
}

export function parseStat(text: string): ProcStat {
  // comm may contain spaces and parentheses: it ends at the last one.
  const open = text.indexOf('(')
  const close = text.lastIndexOf(')')
  const rest = text
    .slice(close + 2)
    .trim()
    .split(' ')
  const field = (n: number): string => rest[n - 3]
  return {
    comm: text.slice(open + 1, close),
    state: field(3),
    ppid: Number(field(4)),
    pgrp: Number(field(5)),
    session: Number(field(6)),
    ttyNr: Number(field(7)),
    flags: Number(field(9)),
    cpuTicks: Number(field(14)) + Number(field(15)),
    nrThreads: Number(field(20)),
    startTime: BigInt(field(22)),
    startCode: BigInt(field(26)),
    endCode: BigInt(field(27)),
    startStack: BigInt(field(28)),
    startData: BigInt(field(45)),
    endData: BigInt(field(46)),
    startBrk: BigInt(field(47)),
    argStart: BigInt(field(48)),
    argEnd: BigInt(field(49)),
    envStart: BigInt(field(50)),
    envEnd: BigInt(field(51)),
    exitCode: Number(field(52)),
  }
}

export function readStat(pid: number, tid?: number): ProcStat {
  const path = tid === undefined ? `/proc/${pid}/stat` : `/proc/${pid}/task/${tid}/stat`
  return parseStat(readFileSync(path, 'utf8'))
}
