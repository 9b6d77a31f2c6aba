import { spawn } from 'node:child_process'
import { closeSync, readFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { constants } from 'node:os'
import { join } from 'node:path'
import { type KernelErrorLike, PageferryError } from '@pageferry/base'
import type { ExitStatus } from './exit-status.js'
import * as fds from './fds.js'
import { paths } from './paths.js'

/** The client of programs/keeper.c. Numbers and layouts are those of programs/keeper-protocol.h. */

const version = 1
const requestBytes = 80
const replyBytes = 32
const nameBytes = 64
const maxHeld = 512
const OP = { spawn: 1, hold: 2, fetch: 3, list: 4, drop: 5, status: 6, kill: 7, quit: 8, child: 9 } as const
const spawnIntoCgroup = 1
const stateNames = ['', 'none', 'running', 'exited', 'signaled'] as const

/** A keeper answers within microseconds, except for a spawn that hangs: it gives up itself after 5 s. */
const replyTimeoutMs = 7000

export interface KeeperOptions {
  /** Directory of the socket and the exit status; made (mode 0700) if it does not exist. One keeper per directory. */
  dir: string
  /** The keeper becomes pid 1 of a new pid namespace. /proc stays the host's. */
  newPidNamespace?: boolean
  /** Either offset makes a new time namespace; relative to the host's clocks (time_namespaces(7)). */
  monotonicOffsetNs?: bigint
  boottimeOffsetNs?: bigint
  /** Directories of cgroups (one per hierarchy) that the keeper moves to, so that it outlives its service. */
  cgroups?: string[]
  /** The keeper and the process that it has spawned end with its last client. Otherwise it outlives its launcher. */
  tied?: boolean
  /** Directories of cgroups that it removes, in this order, when the last process has ended. */
  removeCgroups?: string[]
}

export interface KeeperStatus {
  state: 'none' | 'running' | ExitStatus['kind']
  /** Exit code or signal number, 0 otherwise. */
  value: number
}

export interface Spawned {
  /** Pid in the pid namespace of our /proc. */
  pid: number
  /** Pid in the keeper's pid namespace, as requested. */
  innerPid: number
  /** The caller owns it. */
  pidfd: number
}

interface Reply {
  pid: number
  state: number
  value: number
  names: string[]
  fds: number[]
}

/**
 * The calls are synchronous on purpose: nothing else may run between the freeze and the thaw. Refusals are thrown as
 * kernel errors with the keeper's errno; ECONNRESET means that the keeper is gone.
 */
export class KeeperClient {
  readonly #sock: number
  #closed = false

  constructor(sock: number) {
    this.#sock = sock
  }

  /**
   * Starts the skeleton with `pid` (0: any) in the keeper's pid namespace; `socketFd` becomes its descriptor 3 and
   * stays open here. Once per keeper (EALREADY). EEXIST: the pid is taken. `cgroupFd`: a cgroup v2 directory.
   */
  spawn(request: { pid: number; socketFd: number; cgroupFd?: number }): Spawned {
    const { pid, socketFd, cgroupFd } = request
    const sent = cgroupFd === undefined ? [socketFd] : [socketFd, cgroupFd]
    const reply = this.#call('spawn', { pid, flags: cgroupFd === undefined ? 0 : spawnIntoCgroup }, sent)
    return toSpawned('spawn', reply)
  }

  /** Returns the result of `spawn` again, for a worker that takes over; ECHILD if the process does not run. */
  child(): Spawned {
    return toSpawned('child', this.#call('child', {}))
  }

  /** Gives the keeper a duplicate of `fd`. It replaces the one of that name (1 to 63 bytes). ENOSPC above 512. */
  hold(name: string, fd: number): void {
    this.#call('hold', { name }, [fd])
  }

  /** Returns a duplicate of the descriptor of that name; ENOENT if there is none. The caller owns it. */
  fetch(name: string): number {
    return onlyFd('fetch', this.#call('fetch', { name }))
  }

  list(): string[] {
    return this.#call('list', {}).names
  }

  drop(name: string): void {
    this.#call('drop', { name })
  }

  status(): KeeperStatus {
    const { state, value } = this.#call('status', {})
    const name = stateNames[state]
    if (!name) throw keeperError('status', constants.errno.EPROTO)
    return { state: name, value }
  }

  /** Sends SIGKILL to the spawned process and its descendants. The keeper exits when they have ended. */
  kill(): void {
    this.#call('kill', {})
  }

  /** Ends a keeper that has no child (EBUSY otherwise). */
  quit(): void {
    this.#call('quit', {})
  }

  /** The connection, which hangs up when the keeper has ended. */
  get socketFd(): number {
    return this.#sock
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    closeSync(this.#sock)
  }

  #call(
    op: keyof typeof OP,
    fields: { pid?: number; flags?: number; name?: string },
    sent: number[] = [],
  ): Reply {
    if (this.#closed) throw keeperError(op, constants.errno.ENOTCONN)
    const request = Buffer.alloc(requestBytes)
    const name = Buffer.from(fields.name ?? '')
    if (name.length >= nameBytes) throw keeperError(op, constants.errno.ENAMETOOLONG)
    request.writeUInt32LE(version, 0)
    request.writeUInt32LE(OP[op], 4)
    request.writeInt32LE(fields.pid ?? 0, 8)
    request.writeUInt32LE(fields.flags ?? 0, 12)
    name.copy(request, 16)
    fds.send(this.#sock, request, sent)
    const received = fds.recv(this.#sock, replyBytes + maxHeld * nameBytes, 1, replyTimeoutMs)
    if (received.bytes.length === 0) throw keeperError(op, constants.errno.ECONNRESET)
    return parseReply(op, received)
  }
}

function parseReply(op: keyof typeof OP, received: fds.Received): Reply {
  const reply = Buffer.from(received.bytes.buffer, received.bytes.byteOffset, received.bytes.length)
  const count = reply.length < replyBytes ? -1 : reply.readUInt32LE(24)
  if (reply.length !== replyBytes + count * nameBytes || reply.readUInt32LE(4) !== OP[op]) {
    received.fds.forEach(closeSync)
    throw keeperError(op, constants.errno.EPROTO)
  }
  const err = reply.readInt32LE(8)
  if (err !== 0) throw keeperError(op, err)
  const names = Array.from({ length: count }, (_, i) => {
    const name = reply.subarray(replyBytes + i * nameBytes, replyBytes + (i + 1) * nameBytes)
    return name.toString('utf8', 0, name.indexOf(0))
  })
  return {
    pid: reply.readInt32LE(12),
    state: reply.readUInt32LE(16),
    value: reply.readInt32LE(20),
    names,
    fds: received.fds,
  }
}

function onlyFd(op: keyof typeof OP, reply: Reply): number {
  const fd = reply.fds[0]
  if (fd === undefined) throw keeperError(op, constants.errno.EPROTO)
  return fd
}

function keeperError(op: string, errno: number): KernelErrorLike {
  const names = Object.entries(constants.errno)
  const code = names.find(([, value]) => value === errno)?.[0] ?? `E${errno}`
  const syscall = `keeper(${op})`
  return Object.assign(new Error(`${syscall} failed with ${code}`), { code, errno, syscall })
}

function toSpawned(op: keyof typeof OP, reply: Reply): Spawned {
  const pidfd = onlyFd(op, reply)
  return { pid: pidOfPidfd(pidfd), innerPid: reply.pid, pidfd }
}

/** The keeper knows the pid only in its own namespace. fdinfo of a pidfd shows it in ours. */
function pidOfPidfd(pidfd: number): number {
  const match = /^Pid:\s+(-?\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${pidfd}`, 'utf8'))
  return match ? Number(match[1]) : -1
}

/**
 * Starts a keeper that does not depend on this process any more, and connects to it. Without a child and without a
 * client it ends after a minute.
 * @throws PageferryError KERNEL with the line that the keeper printed, e.g. "unshare(CLONE_NEWTIME): EINVAL"
 */
export async function launchKeeper(options: KeeperOptions): Promise<KeeperClient> {
  await mkdir(options.dir, { recursive: true, mode: 0o700 })
  const args = ['--dir', options.dir, '--skeleton', paths.skeleton]
  if (options.newPidNamespace) args.push('--new-pid-namespace')
  if (options.tied) args.push('--tied')
  if (options.monotonicOffsetNs !== undefined) args.push(`--monotonic-offset-ns=${options.monotonicOffsetNs}`)
  if (options.boottimeOffsetNs !== undefined) args.push(`--boottime-offset-ns=${options.boottimeOffsetNs}`)
  for (const path of options.cgroups ?? []) args.push('--cgroup', path)
  for (const path of options.removeCgroups ?? []) args.push('--remove-cgroup', path)

  // No environment: it would be readable in /proc for as long as the workload runs.
  const started = spawn(paths.keeper, args, { detached: true, env: {}, stdio: ['ignore', 'ignore', 'pipe'] })
  let printed = ''
  started.stderr.setEncoding('utf8').on('data', (text: string) => {
    printed += text
  })
  const status = await new Promise<number | null>((resolve, reject) => {
    started.once('error', reject).once('close', resolve)
  })
  if (status !== 0) {
    const reason = printed.trim() || `exit status ${status}`
    throw new PageferryError('KERNEL', `the keeper in ${options.dir} did not start: ${reason}`)
  }
  return connectKeeper(options.dir)
}

/** Connects to the keeper of a directory. ENOENT or ECONNREFUSED: it has ended; see `readExitStatus`. */
export function connectKeeper(dir: string): KeeperClient {
  return new KeeperClient(fds.connectUnix(join(dir, 'keeper.sock'), fds.SOCK_SEQPACKET))
}
