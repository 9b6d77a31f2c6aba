import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

/** /proc/PID/fdinfo/N with the link of /proc/PID/fd/N (proc_pid_fdinfo(5)). */
export interface FdInfo {
  fd: number
  /** Target of the link: a path, "pipe:[123]", "anon_inode:[eventpoll]", … */
  target: string
  position: bigint
  /** Open flags; O_CLOEXEC here is the descriptor's own flag. */
  flags: number
  mountId: number
  inode: bigint
  /** The whole file. Most kinds of files add lines of their own, which `fdinfoLines` finds. */
  text: string
}

/** The values of all lines "name: value", for example of `lock` or `eventfd-count`. */
export function fdinfoLines({ text }: Pick<FdInfo, 'text'>, name: string): string[] {
  return [...text.matchAll(new RegExp(`^${name}:\\s*(.*)$`, 'gm'))].map((m) => m[1])
}

export function readFdInfo(pid: number, fd: number): FdInfo {
  const text = readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8')
  const value = (line: RegExp): string | undefined => line.exec(text)?.[1]
  return {
    fd,
    target: readlinkSync(`/proc/${pid}/fd/${fd}`),
    position: BigInt(value(/^pos:\s*(\d+)$/m) ?? 0),
    flags: Number.parseInt(value(/^flags:\s*(\d+)$/m) ?? '0', 8),
    mountId: Number(value(/^mnt_id:\s*(\d+)$/m) ?? 0),
    inode: BigInt(value(/^ino:\s*(\d+)$/m) ?? 0),
    text,
  }
}

/**
 * Open descriptors in ascending order. A descriptor that is closed during the reading is left out.
 *
 * @param wanted by the link's target. Default: all of them
 */
export function readFds(pid: number, wanted?: (target: string) => boolean): FdInfo[] {
  const infos: FdInfo[] = []
  for (const name of readdirSync(`/proc/${pid}/fd`)) {
    try {
      if (wanted?.(readlinkSync(`/proc/${pid}/fd/${name}`)) === false) continue
      infos.push(readFdInfo(pid, Number(name)))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    }
  }
  return infos.sort((a, b) => a.fd - b.fd)
}
