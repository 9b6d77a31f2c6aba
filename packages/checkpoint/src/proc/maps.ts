import { readFileSync } from 'node:fs'
import { pageShift } from '@pageferry/base'

/** One line of /proc/PID/maps (proc_pid_maps(5)), in pages; `offset` in bytes. */
export interface MapsLine {
  start: number
  nrPages: number
  read: boolean
  write: boolean
  exec: boolean
  shared: boolean
  offset: bigint
  device: string
  inode: bigint
  /** As the kernel prints it: a path, "[heap]", "", … with octal escapes resolved. */
  name: string
}

/**
 * The two-letter flags of a "VmFlags:" line in /proc/PID/smaps, keyed by the area's first page. "pk" is ours: the area
 * has a protection key other than 0 (pkeys(7)).
 */
export type VmFlags = Map<number, Set<string>>

const linePattern = /^([0-9a-f]+)-([0-9a-f]+) ([r-])([w-])([x-])([ps]) ([0-9a-f]+) (\S+) (\d+)\s*(.*)$/

function parseLine(line: string): MapsLine | null {
  const m = linePattern.exec(line)
  if (m === null) return null
  const start = Number(BigInt(`0x${m[1]}`) >> BigInt(pageShift))
  const end = Number(BigInt(`0x${m[2]}`) >> BigInt(pageShift))
  return {
    start,
    nrPages: end - start,
    read: m[3] === 'r',
    write: m[4] === 'w',
    exec: m[5] === 'x',
    shared: m[6] === 's',
    offset: BigInt(`0x${m[7]}`),
    device: m[8],
    inode: BigInt(m[9]),
    // The kernel escapes only newlines in this file (seq_file_path(m, file, "\n")).
    name: m[10].replaceAll('\\012', '\n'),
  }
}

export function parseMaps(text: string): MapsLine[] {
  const lines: MapsLine[] = []
  for (const line of text.split('\n')) {
    if (line === '') continue
    const parsed = parseLine(line)
    if (parsed === null) throw new Error(`/proc/PID/maps has a line of unknown form: ${line}`)
    lines.push(parsed)
  }
  return lines
}

export function parseVmFlags(smaps: string): VmFlags {
  const flags: VmFlags = new Map()
  let start = -1
  let hasKey = false
  for (const line of smaps.split('\n')) {
    if (line.startsWith('VmFlags:')) {
      const letters = line.slice('VmFlags:'.length).trim().split(/\s+/)
      flags.set(start, new Set(hasKey ? [...letters, 'pk'] : letters))
      hasKey = false
    } else if (line.startsWith('ProtectionKey:')) {
      hasKey = Number(line.slice('ProtectionKey:'.length)) !== 0
    } else {
      const area = parseLine(line)
      if (area !== null) start = area.start
    }
  }
  return flags
}

/** How often we read again for a consistent map, while a process changes its map all the time. */
const maxLooks = 100

/**
 * The areas in ascending order. A running process may change them between two of the reads that the file takes. Then
 * the result may even overlap (seen on Linux 6.18, which no longer locks the whole map), and is read again.
 */
export function readMaps(pid: number): MapsLine[] {
  for (let look = 1; ; look++) {
    const lines = parseMaps(readFileSync(`/proc/${pid}/maps`, 'utf8'))
    if (look === maxLooks || fitsTogether(lines)) return lines
  }
}

export function fitsTogether(lines: MapsLine[]): boolean {
  return lines.every((line, i) => i === 0 || lines[i - 1].start + lines[i - 1].nrPages <= line.start)
}

/**
 * Reads the flags. The kernel walks the page tables of every area for them and offers no cheaper way. That takes about
 * 30 ms per GiB resident on the test machine, so it stays out of the freeze.
 */
export function readVmFlags(pid: number): VmFlags {
  return parseVmFlags(readFileSync(`/proc/${pid}/smaps`, 'utf8'))
}
