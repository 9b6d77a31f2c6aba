import type { CallBatch } from '../../remote/call-batch.js'
import type { RemoteCall } from '../../remote/skeleton-process.js'
import { memoryPolicy } from './memory-policy.js'
import { fromNumber, toNumber } from './values.js'

/** Attributes that only the thread itself can ask for and set: one system call each. */
export interface CallAttribute {
  /** In images and in the list (list.ts). */
  readonly name: string
  /** Every thread has its own, or all threads of a process share one. */
  readonly of: 'thread' | 'process'
  /** Adds the question. The answer is null for the value of a new process, and in a kernel that lacks the attribute. */
  ask(batch: CallBatch): () => Uint8Array | null
  /** @param put stores bytes for the call, and returns their address there */
  restore(value: Uint8Array, put: (bytes: Uint8Array) => bigint): RemoteCall
}

interface Form {
  name: string
  of: CallAttribute['of']
  get: RemoteCall
  set: (value: bigint) => RemoteCall
  /** Value in a new process; undefined: its parent decides, so the value always travels. */
  initial?: bigint
}

/** The kernel answers with the result of the call. */
function byResult({ name, of, get, set, initial }: Form): CallAttribute {
  return {
    ...{ name, of, restore: (value) => set(toNumber(value)) },
    ask: (batch) => {
      const result = batch.tryAdd(get.name, ...get.args)
      return () => (result() < 0n || result() === initial ? null : fromNumber(result()))
    },
  }
}

/** The kernel writes its answer, an int. The pointer is the argument behind those of `get`. */
function byPointer({ name, of, get, set, initial }: Form): CallAttribute {
  return {
    ...{ name, of, restore: (value) => set(toNumber(value)) },
    ask: (batch) => {
      const at = batch.room(4)
      const result = batch.tryAdd(get.name, ...get.args, at, 0, 0, 0)
      return () => {
        if (result() < 0n) return null
        const value = BigInt(batch.read(at, 4).readInt32LE(0))
        return value === initial ? null : fromNumber(value)
      }
    },
  }
}

/** PR_GET_SPECULATION_CTRL and PR_SET_SPECULATION_CTRL of one kind of speculation. */
function speculation(name: string, which: number, initial: bigint): CallAttribute {
  const { ask, ...rest } = byResult({
    ...{ name, of: 'thread', get: prctl(52, which) },
    set: (value) => prctl(53, which, value & ~prSpecPrctl),
  })
  return {
    ...rest,
    ask: (batch) => {
      const answer = ask(batch)
      return () => {
        const bytes = answer()
        const value = bytes === null ? initial : toNumber(bytes)
        // Without this bit the thread has no choice: the answer is a fact of the host.
        return value === initial || (value & prSpecPrctl) === 0n ? null : bytes
      }
    },
  }
}

/** prctl(2) wants zeros behind its last argument. */
function prctl(option: number, ...args: (bigint | number)[]): RemoteCall {
  return { name: 'prctl', args: [option, ...args, 0, 0, 0, 0].slice(0, 5) }
}

const prSpecPrctl = 1n
const prSpecEnable = 2n
const prSpecDisable = 4n
const prMceKillSet = 1
const prMceKillDefault = 2n
const prTscEnable = 1n
/** With this argument personality(2) changes nothing. */
const askPersonality = 0xffff_ffff
/** IOPRIO_WHO_PROCESS and 0: the calling thread (ioprio_set(2)). */
const ownIoPriority = [1, 0]

/** Numbers as in linux/prctl.h (PR_GET_x, PR_SET_x) and asm/prctl.h (ARCH_GET_CPUID, ARCH_SET_CPUID). */
export const callAttributes: readonly CallAttribute[] = [
  byResult({
    ...{ name: 'timer-slack', of: 'thread', get: prctl(30) },
    set: (ns) => prctl(29, ns),
  }),
  byResult({
    ...{ name: 'personality', of: 'thread', get: { name: 'personality', args: [askPersonality] } },
    set: (value) => ({ name: 'personality', args: [value] }),
  }),
  byResult({
    ...{ name: 'io-priority', of: 'thread', get: { name: 'ioprio_get', args: ownIoPriority } },
    set: (value) => ({ name: 'ioprio_set', args: [...ownIoPriority, value] }),
  }),
  byResult({
    ...{ name: 'mce-kill', of: 'thread', get: prctl(34), initial: prMceKillDefault },
    set: (value) => prctl(33, prMceKillSet, value),
  }),
  byPointer({
    ...{ name: 'tsc', of: 'thread', get: { name: 'prctl', args: [25] }, initial: prTscEnable },
    set: (value) => prctl(26, value),
  }),
  byResult({
    ...{ name: 'cpuid', of: 'thread', get: { name: 'arch_prctl', args: [0x1011, 0] }, initial: 1n },
    set: (value) => ({ name: 'arch_prctl', args: [0x1012, value] }),
  }),
  speculation('speculative-store-bypass', 0, prSpecPrctl | prSpecEnable),
  speculation('indirect-branch-speculation', 1, prSpecPrctl | prSpecEnable),
  speculation('l1d-flush', 2, prSpecPrctl | prSpecDisable),
  memoryPolicy,
  byResult({
    ...{ name: 'memory-deny-write-execute', of: 'process', get: prctl(66), initial: 0n },
    set: (value) => prctl(65, value),
  }),
  byResult({
    ...{ name: 'memory-merge', of: 'process', get: prctl(68), initial: 0n },
    set: (value) => prctl(67, value),
  }),
  byResult({
    ...{ name: 'thp-disable', of: 'process', get: prctl(42), initial: 0n },
    // Bit 0 says that it is on, the others are the flags that it was set with (Linux 6.18).
    set: (value) => prctl(41, 1, value & ~1n),
  }),
]
