import { readFileSync } from 'node:fs'
import { pageBytes } from '@pageferry/base'

/** /proc/PID/task/TID/status (proc_pid_status(5)). Masks are bit sets with signal n at bit n-1. */
export interface ProcStatus {
  umask: number
  tracerPid: number
  /** real, effective, saved, file system */
  uids: [number, number, number, number]
  gids: [number, number, number, number]
  groups: number[]
  /** The pid in each pid namespace; the outermost (the reader's) comes first. */
  nsPids: number[]
  /** The pid of its process in the innermost pid namespace. */
  nsTgid: number
  threads: number
  sigPending: bigint
  sharedPending: bigint
  sigBlocked: bigint
  sigIgnored: bigint
  sigCaught: bigint
  capInheritable: bigint
  capPermitted: bigint
  capEffective: bigint
  capBounding: bigint
  capAmbient: bigint
  noNewPrivs: boolean
  seccomp: number
  coreDumping: boolean
  x86ThreadFeatures: string[]
  thpEnabled: boolean
  /** Bits of an address that count, as the kernel writes them; '' if it does not. */
  untagMask: string
  /** VmLck: areas that are locked, filled or not. */
  lockedPages: number
}

export function parseStatus(text: string): ProcStatus {
  const fields = new Map<string, string>()
  for (const line of text.split('\n')) {
    const colon = line.indexOf(':')
    if (colon > 0) fields.set(line.slice(0, colon), line.slice(colon + 1).trim())
  }
  const words = (name: string): string[] => (fields.get(name) ?? '').split(/\s+/).filter((w) => w !== '')
  const mask = (name: string): bigint => BigInt(`0x${fields.get(name) ?? '0'}`)
  const four = (name: string): [number, number, number, number] =>
    words(name).map(Number) as [number, number, number, number]
  return {
    umask: Number.parseInt(fields.get('Umask') ?? '22', 8),
    tracerPid: Number(fields.get('TracerPid') ?? 0),
    uids: four('Uid'),
    gids: four('Gid'),
    groups: words('Groups').map(Number),
    nsPids: words('NSpid').map(Number),
    nsTgid: Number(words('NStgid').at(-1) ?? 0),
    threads: Number(fields.get('Threads') ?? 1),
    sigPending: mask('SigPnd'),
    sharedPending: mask('ShdPnd'),
    sigBlocked: mask('SigBlk'),
    sigIgnored: mask('SigIgn'),
    sigCaught: mask('SigCgt'),
    capInheritable: mask('CapInh'),
    capPermitted: mask('CapPrm'),
    capEffective: mask('CapEff'),
    capBounding: mask('CapBnd'),
    capAmbient: mask('CapAmb'),
    noNewPrivs: fields.get('NoNewPrivs') === '1',
    seccomp: Number(fields.get('Seccomp') ?? 0),
    coreDumping: fields.get('CoreDumping') === '1',
    x86ThreadFeatures: words('x86_Thread_features'),
    thpEnabled: fields.get('THP_enabled') !== '0',
    untagMask: fields.get('untag_mask') ?? '',
    lockedPages: (Number.parseInt(fields.get('VmLck') ?? '0', 10) * 1024) / pageBytes,
  }
}

export function readStatus(pid: number, tid = pid): ProcStatus {
  return parseStatus(readFileSync(`/proc/${pid}/task/${tid}/status`, 'utf8'))
}
