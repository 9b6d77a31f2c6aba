import { statfsSync } from 'node:fs'
import { fds } from '@pageferry/kernel'
import type { FdInfo } from '../../proc/fdinfo.js'
import type { OpenFile } from './kind.js'

/** Names of open files that are not moved, as a user knows them. */

/** Address families (sys/socket.h). The others are shown as a number. */
const families: Record<number, string> = {
  1: 'AF_UNIX',
  2: 'AF_INET',
  10: 'AF_INET6',
  15: 'AF_KEY',
  16: 'AF_NETLINK',
  17: 'AF_PACKET',
  38: 'AF_ALG',
  40: 'AF_VSOCK',
  44: 'AF_XDP',
}

/** Types of sockets (sys/socket.h). */
const types: Record<number, string> = {
  1: 'SOCK_STREAM',
  2: 'SOCK_DGRAM',
  3: 'SOCK_RAW',
  4: 'SOCK_RDM',
  5: 'SOCK_SEQPACKET',
}

/**
 * The kernel's name for files without a path: "socket:[81]", "anon_inode:[eventpoll]", "anon_inode:inotify",
 * "/memfd:x".
 */
export function kernelNameOf({ target }: FdInfo): string {
  return /^(?:anon_inode:\[?|\/)?([\w-]+)/.exec(target)?.[1] ?? target
}

/** Of a file that no kind handles. */
export function nameOfUnknown({ info, copy }: OpenFile): string {
  return info.target.startsWith('socket:') ? socketName(copy) : kernelNameOf(info)
}

function socketName(copy: number): string {
  const family = fds.getSocketOption(copy, fds.SO_DOMAIN)
  const type = fds.getSocketOption(copy, fds.SO_TYPE)
  return `socket (${families[family] ?? `family ${family}`}, ${types[type] ?? `type ${type}`})`
}

/** Magic numbers of file systems whose files are something else (statfs(2), linux/magic.h). */
const specialFileSystems: Record<number, string> = {
  427819522: 'a POSIX message queue (mq_open)',
  1397048141: 'secret memory (memfd_secret)',
}

/** For a file that has a path, but is no regular file in truth; undefined: it is. */
export function specialNameOf(copy: number): string | undefined {
  return specialFileSystems[statfsSync(`/proc/self/fd/${copy}`).type]
}
