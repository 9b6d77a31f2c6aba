import { closeSync, openSync } from 'node:fs'
import { addressOf, hex, PageferryError, pageBytes } from '@pageferry/base'
import { fds, memory, ptrace } from '@pageferry/kernel'
import { readMaps } from '../proc/maps.js'
import { findGap } from './scratch.js'
import { SYS, type SyscallName } from './syscalls.js'
import { remoteError } from './workload-thread.js'

const { REG } = ptrace
const { PROT_READ, PROT_WRITE, PROT_EXEC, MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE } = memory

/** One page of code; then data: a table of calls and their memory arguments. */
const codePages = 1
export const skeletonScratchPages = 64
const tableBytesPerCall = 64
/** Half of the scratch data holds the table of calls, the other half their memory arguments. */
const tableBytes = ((skeletonScratchPages - codePages) >> 1) * pageBytes
export const maxBatchCalls = Math.floor(tableBytes / tableBytesPerCall)
export const argumentBytes = (skeletonScratchPages - codePages) * pageBytes - tableBytes

/** A batch of 2,000 madvise calls takes milliseconds. This leaves time for a machine that swaps. */
const batchTimeoutMs = 60_000

export interface RemoteCall {
  name: SyscallName
  args: (bigint | number)[]
}

interface QueuedCall extends RemoteCall {
  /** Explains a failure; undefined: the errno says enough. */
  explain?: (errno: number) => Error
  /** Reports a failure, which then ends nothing. */
  onError?: (errno: number) => void
  /** Result that later calls of the queue rely on. */
  expected?: bigint
}

/**
 * Runs a table of system calls without stopping in between, then traps:
 *
 *     loop: test r14, r14 ; jz end ; load rax, rdi, rsi, rdx, r10, r8, r9 from [r15]
 *           syscall ; mov [r15 + 56], rax ; add r15, 64 ; dec r14 ; jmp loop
 *     end:  int3
 *
 * Nothing here survives the tracer. It need not: a skeleton without its tracer is killed (EXITKILL).
 */
const runner = Buffer.from([
  ...[0x4d, 0x85, 0xf6, 0x74, 0x2a], // test r14, r14; jz end
  ...[0x49, 0x8b, 0x07], // mov rax, [r15]
  ...[0x49, 0x8b, 0x7f, 0x08], // mov rdi, [r15 + 8]
  ...[0x49, 0x8b, 0x77, 0x10], // mov rsi, [r15 + 16]
  ...[0x49, 0x8b, 0x57, 0x18], // mov rdx, [r15 + 24]
  ...[0x4d, 0x8b, 0x57, 0x20], // mov r10, [r15 + 32]
  ...[0x4d, 0x8b, 0x47, 0x28], // mov r8, [r15 + 40]
  ...[0x4d, 0x8b, 0x4f, 0x30], // mov r9, [r15 + 48]
  ...[0x0f, 0x05], // syscall
  ...[0x49, 0x89, 0x47, 0x38], // mov [r15 + 56], rax
  ...[0x49, 0x83, 0xc7, 0x40], // add r15, 64
  ...[0x49, 0xff, 0xce], // dec r14
  ...[0xeb, 0xd1], // jmp loop
  0xcc, // end: int3
])

/** SCM_MAX_FD in the kernel is 253. */
export const maxFdsPerMessage = 250
/** Descriptors 0, 1 and 2 are the keeper's. */
const initialSocketFd = 3

/** Options for every thread of a skeleton. */
const skeletonOptions = ptrace.PTRACE_O_EXITKILL | ptrace.PTRACE_O_TRACECLONE | ptrace.PTRACE_O_TRACESYSGOOD

/**
 * The stopped process on the destination that becomes the workload. It runs nothing but our system calls. Its only
 * memory of its own is one scratch area, which it gives up last.
 */
export class SkeletonProcess {
  readonly pid: number
  readonly memFd: number
  readonly pidfd: number
  /** Tracer's end of a socket. The other end is the skeleton's descriptor 3. */
  readonly socket: number
  /** The skeleton's end of that socket, as its number there; -1 once it has the workload's descriptors. */
  socketFd = initialSocketFd
  #scratchPage = 0
  #base: BigUint64Array = new BigUint64Array(27)
  #queued: QueuedCall[] = []
  /** The thread that makes the queued calls. */
  #queuedFor = 0
  /** Memory arguments of the queued calls, at the front. */
  readonly #queuedBytes = Buffer.alloc(argumentBytes)
  #nrQueuedBytes = 0

  private constructor(pid: number, pidfd: number, socket: number) {
    this.pid = pid
    this.pidfd = pidfd
    this.socket = socket
    this.memFd = openSync(`/proc/${pid}/mem`, 'r+')
  }

  /**
   * Takes over a skeleton program that waits in pause(2). Maps the scratch area where neither the skeleton nor the
   * workload has anything, and unmaps everything else except the kernel's own areas.
   */
  static take(pid: number, pidfd: number, socket: number): SkeletonProcess {
    const skeleton = new SkeletonProcess(pid, pidfd, socket)
    ptrace.seize(pid, skeletonOptions)
    ptrace.interrupt(pid)
    const stop = ptrace.wait(pid, batchTimeoutMs)
    if (stop.kind !== 'stopped')
      throw new PageferryError('INTERNAL', `the skeleton (pid ${pid}) did not stop`)
    const own = readMaps(pid)
    skeleton.#base = ptrace.getRegs(pid)
    const page = findGap(own, skeletonScratchPages)
    skeleton.#mapScratch(page)
    const doomed = own.filter((area) => !area.name.startsWith('[v'))
    skeleton.batch(
      doomed.map((area) => ({ name: 'munmap', args: [addressOf(area.start), area.nrPages * pageBytes] })),
    )
    return skeleton
  }

  #mapScratch(page: number): void {
    // The program stands behind the syscall instruction of its pause(2), so rip - 2 is a usable one.
    const regs = this.#base.slice()
    regs[REG.rip] = this.#base[REG.rip] - 2n
    regs[REG.orig_rax] = BigInt.asUintN(64, -1n)
    const map = (address: bigint, nrPages: number, prot: number): void => {
      regs[REG.rax] = BigInt(SYS.mmap)
      regs[REG.rdi] = address
      regs[REG.rsi] = BigInt(nrPages * pageBytes)
      regs[REG.rdx] = BigInt(prot)
      regs[REG.r10] = BigInt(MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE)
      regs[REG.r8] = BigInt.asUintN(64, -1n)
      regs[REG.r9] = 0n
      ptrace.setRegs(this.pid, regs)
      const { result } = ptrace.syscallStep(this.pid, batchTimeoutMs)
      if (result < 0n) throw remoteError('mmap', Number(-result), this.pid)
    }
    map(addressOf(page), codePages, PROT_READ | PROT_EXEC)
    map(addressOf(page + codePages), skeletonScratchPages - codePages, PROT_READ | PROT_WRITE)
    memory.pwrite(this.memFd, addressOf(page), runner)
    this.#scratchPage = page
  }

  get scratchPage(): number {
    return this.#scratchPage
  }

  /** Moves the scratch area away if a new area of the workload needs its place. */
  avoid(workloadMaps: { start: number; nrPages: number }[]): void {
    const page = this.#scratchPage
    const clash = workloadMaps.some(
      (area) => area.start < page + skeletonScratchPages && page < area.start + area.nrPages,
    )
    if (!clash) return
    const to = findGap([...readMaps(this.pid), ...workloadMaps], skeletonScratchPages)
    // The code cannot move itself while it runs from its old place. So first make a second scratch area.
    const [code, data] = this.batch([
      {
        name: 'mmap',
        args: [addressOf(to), codePages * pageBytes, PROT_READ | PROT_EXEC, anonymousFixed, -1, 0],
      },
      {
        name: 'mmap',
        args: [
          addressOf(to + codePages),
          (skeletonScratchPages - codePages) * pageBytes,
          PROT_READ | PROT_WRITE,
          anonymousFixed,
          -1,
          0,
        ],
      },
    ])
    if (code < 0n || data < 0n) throw new PageferryError('KERNEL', `mmap at ${hex(addressOf(to))} failed`)
    memory.pwrite(this.memFd, addressOf(to), runner)
    this.#scratchPage = to
    this.batch([{ name: 'munmap', args: [addressOf(page), skeletonScratchPages * pageBytes] }])
  }

  /** First page of a gap beside everything that is mapped now and everything in `wanted`. */
  findGap(nrPages: number, wanted: { start: number; nrPages: number }[]): number {
    return findGap([...readMaps(this.pid), ...wanted], nrPages)
  }

  get #code(): bigint {
    return addressOf(this.#scratchPage)
  }

  get #table(): bigint {
    return addressOf(this.#scratchPage + codePages)
  }

  /** Address of the area in which `write` puts arguments of calls. */
  get arguments(): bigint {
    return this.#table + BigInt(tableBytes)
  }

  /**
   * Stores bytes for the call that is queued next, and returns their address. Put long ones first: they may need the
   * room.
   */
  put(bytes: Uint8Array): bigint {
    if (this.#nrQueuedBytes + bytes.length > argumentBytes) this.flush()
    const at = this.#nrQueuedBytes
    if (at + bytes.length > argumentBytes) throw new PageferryError('INTERNAL', 'arguments too large')
    this.#queuedBytes.set(bytes, at)
    this.#nrQueuedBytes = (at + bytes.length + 7) & ~7
    return this.arguments + BigInt(at)
  }

  /**
   * Adds a call that must succeed, unless it has `onError`. All calls are made in order. Neighbours in the same thread
   * share one run, at the latest before the next call that is not queued. Until then a failure is unknown.
   */
  queue(
    tid: number,
    name: SyscallName,
    args: (bigint | number)[],
    more: Omit<QueuedCall, keyof RemoteCall> = {},
  ): void {
    // The bytes of this call stay where they are: only the next `put` after a flush overwrites them.
    if (tid !== this.#queuedFor) this.#runQueue()
    this.#queuedFor = tid
    this.#queued.push({ name, args, ...more })
    if (this.#queued.length === maxBatchCalls || this.#nrQueuedBytes > argumentBytes >> 1) this.flush()
  }

  /** Makes the queued calls. */
  flush(): void {
    this.#runQueue()
    this.#nrQueuedBytes = 0
  }

  #runQueue(): void {
    const calls = this.#queued
    if (calls.length === 0) return
    this.#queued = []
    memory.pwrite(this.memFd, this.arguments, this.#queuedBytes.subarray(0, this.#nrQueuedBytes))
    for (const [i, result] of this.#runBatch(calls, this.#queuedFor).entries()) {
      const { name, explain, onError, expected } = calls[i]
      if (result < 0n && result >= -4095n) {
        if (onError !== undefined) {
          onError(Number(-result))
          continue
        }
        throw explain?.(Number(-result)) ?? remoteError(name, Number(-result), this.#queuedFor)
      }
      if (expected !== undefined && result !== expected) {
        throw new PageferryError('INTERNAL', `${name} in the skeleton answered ${result}, not ${expected}`)
      }
    }
  }

  /** Stores bytes in the argument area and returns their address. */
  write(bytes: Uint8Array, offset = 0): bigint {
    this.flush()
    if (offset + bytes.length > argumentBytes) throw new PageferryError('INTERNAL', 'arguments too large')
    memory.pwrite(this.memFd, this.arguments + BigInt(offset), bytes)
    return this.arguments + BigInt(offset)
  }

  read(address: bigint, length: number): Uint8Array {
    return memory.readBytes(this.pid, address, length)
  }

  /** Runs the calls in one thread, in order. Returns the results, negative errno included. */
  batch(calls: RemoteCall[], tid = this.pid): bigint[] {
    if (calls.length === 0) return []
    this.flush()
    const results: bigint[] = []
    for (let first = 0; first < calls.length; first += maxBatchCalls) {
      results.push(...this.#runBatch(calls.slice(first, first + maxBatchCalls), tid))
    }
    return results
  }

  #runBatch(calls: RemoteCall[], tid: number): bigint[] {
    const table = new BigUint64Array(calls.length * 8)
    for (const [i, call] of calls.entries()) {
      table[i * 8] = BigInt(SYS[call.name])
      for (const [n, value] of call.args.entries()) table[i * 8 + 1 + n] = BigInt.asUintN(64, BigInt(value))
    }
    const bytes = new Uint8Array(table.buffer)
    memory.pwrite(this.memFd, this.#table, bytes)
    const regs = this.#base.slice()
    regs[REG.orig_rax] = BigInt.asUintN(64, -1n)
    regs[REG.rip] = this.#code
    regs[REG.r15] = this.#table
    regs[REG.r14] = BigInt(calls.length)
    ptrace.setRegs(tid, regs)
    ptrace.runToTrap(tid, batchTimeoutMs)
    memory.pread(this.memFd, this.#table, bytes)
    return calls.map((_, i) => BigInt.asIntN(64, table[i * 8 + 7]))
  }

  /** Makes one call; throws with the errno that the skeleton got. */
  call(name: SyscallName, ...args: (bigint | number)[]): bigint {
    return this.callIn(this.pid, name, ...args)
  }

  callIn(tid: number, name: SyscallName, ...args: (bigint | number)[]): bigint {
    const [result] = this.batch([{ name, args }], tid)
    if (result < 0n && result >= -4095n) throw remoteError(name, Number(-result), tid)
    return result
  }

  /** Like `batch`, but every call must succeed. */
  all(calls: RemoteCall[], tid = this.pid): bigint[] {
    const results = this.batch(calls, tid)
    for (const [i, result] of results.entries()) {
      if (result < 0n && result >= -4095n) throw remoteError(calls[i].name, Number(-result), tid)
    }
    return results
  }

  /**
   * Creates a thread with the given tid (in the skeleton's pid namespace), stopped before its first instruction.
   * Returns its tid as the tracer sees it.
   */
  createThread(tid: number): number {
    // struct clone_args (clone3(2)): 11 u64; the child continues behind the syscall with rax = 0.
    const args = new BigUint64Array(11)
    args[0] = cloneThreadFlags
    const ids = new Int32Array([tid, 0])
    const idsAddress = this.write(new Uint8Array(ids.buffer), 256)
    args[8] = idsAddress
    args[9] = 1n
    const address = this.write(new Uint8Array(args.buffer))
    const table = new BigUint64Array(8)
    table[0] = BigInt(SYS.clone3)
    table[1] = address
    table[2] = BigInt(args.byteLength)
    memory.pwrite(this.memFd, this.#table, new Uint8Array(table.buffer))
    const regs = this.#base.slice()
    regs[REG.orig_rax] = BigInt.asUintN(64, -1n)
    regs[REG.rip] = this.#code
    regs[REG.r15] = this.#table
    regs[REG.r14] = 1n
    ptrace.setRegs(this.pid, regs)
    ptrace.resume(this.pid, 'cont', 0)
    let stop = ptrace.wait(this.pid, batchTimeoutMs)
    let created = 0
    if (stop.kind === 'stopped' && stop.event === ptrace.PTRACE_EVENT_CLONE) {
      created = Number(ptrace.getEventMessage(this.pid))
      ptrace.resume(this.pid, 'cont', 0)
      stop = ptrace.wait(this.pid, batchTimeoutMs)
    }
    memory.pread(this.memFd, this.#table, new Uint8Array(table.buffer))
    const result = BigInt.asIntN(64, table[7])
    if (result === -EEXIST) {
      throw new PageferryError(
        'REFUSED',
        `thread id ${tid} is taken on the destination: try again, or use --new-pid-namespace`,
      )
    }
    if (result < 0n) throw remoteError(`clone3 with set_tid ${tid}`, Number(-result), this.pid)
    if (created === 0 || stop.kind !== 'stopped') {
      throw new PageferryError('INTERNAL', `clone3 in the skeleton reported no thread`)
    }
    const first = ptrace.wait(created, batchTimeoutMs)
    if (first.kind !== 'stopped') throw new PageferryError('INTERNAL', `thread ${created} did not stop`)
    return created
  }

  /** Sends our descriptors to the skeleton. Returns their numbers there; they are close-on-exec. */
  sendFds(descriptors: number[]): number[] {
    const received: number[] = []
    for (let first = 0; first < descriptors.length; first += maxFdsPerMessage) {
      const part = descriptors.slice(first, first + maxFdsPerMessage)
      fds.send(this.socket, new Uint8Array([1]), part)
      received.push(...this.#receiveFds(part.length))
    }
    return received
  }

  /** Hands a descriptor of ours over: closed here, and in the skeleton under the number that is returned. */
  lend(descriptor: number): number {
    try {
      return this.sendFds([descriptor])[0]
    } finally {
      closeSync(descriptor)
    }
  }

  #receiveFds(count: number): number[] {
    // struct msghdr, iovec, a byte, then room for one SCM_RIGHTS control message (cmsg(3), 64-bit layout)
    const controlBytes = 16 + count * 4
    const message = Buffer.alloc(256 + ((controlBytes + 7) & ~7))
    const base = this.put(message)
    const words = new DataView(message.buffer, message.byteOffset)
    words.setBigUint64(16, base + 128n, true)
    words.setBigUint64(24, 1n, true)
    words.setBigUint64(32, base + 256n, true)
    words.setBigUint64(40, BigInt(controlBytes), true)
    words.setBigUint64(128, base + 192n, true)
    words.setBigUint64(136, 1n, true)
    this.#queuedBytes.set(message, Number(base - this.arguments))
    this.queue(this.pid, 'recvmsg', [this.socketFd, base, msgCmsgCloexec])
    this.flush()
    const control = Buffer.from(this.read(base + 256n, controlBytes))
    // The kernel cuts the list short if the process may not have more descriptors (unix(7), MSG_CTRUNC).
    const length = control.readBigUInt64LE(0)
    if (
      length !== BigInt(controlBytes) ||
      control.readUInt32LE(8) !== solSocket ||
      control.readUInt32LE(12) !== scmRights
    ) {
      throw new PageferryError('INTERNAL', 'the skeleton did not receive descriptors')
    }
    return Array.from({ length: count }, (_, i) => control.readInt32LE(16 + 4 * i))
  }

  /** The number that open(2) returns before the workload's descriptors come: the keeper's fill all up to the socket. */
  get freeFd(): number {
    return initialSocketFd + 1
  }

  /** Closes the socket: nothing can be sent afterwards. */
  closeSocket(): void {
    this.queue(this.pid, 'close', [this.socketFd])
    this.socketFd = -1
  }

  /** Closes the tracer's descriptors; the process itself is not touched. */
  close(): void {
    closeSync(this.memFd)
    closeSync(this.socket)
  }
}

const EEXIST = 17n
const anonymousFixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
const msgCmsgCloexec = 0x4000_0000
const solSocket = 1
const scmRights = 1
/** CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM: what pthread_create shares (clone(2)) */
const cloneThreadFlags = 0x100n | 0x200n | 0x400n | 0x800n | 0x10000n | 0x40000n
