import { PageferryError, pageBytes } from '@pageferry/base'
import type { ProcStatus } from '../proc/status.js'
import { tableResultOffset, tableRowBytes } from './exit-sequence.js'
import { scratchPages } from './scratch.js'
import type { StoppedProcess } from './stopped-process.js'
import { SYS, type SyscallName } from './syscalls.js'
import { remoteError, type WorkloadThread } from './workload-thread.js'

/** The first half of the scratch area holds the output of calls, the second the table of calls. */
const roomBytes = (scratchPages >> 1) * pageBytes
/** Two rows belong to the end: the mark, and the row behind which the thread gets its own state back. */
export const maxBatchCalls = roomBytes / tableRowBytes - 2

/** The last row of a table that is stopped at each call: when a thread makes it, it has stored the results of all others. */
const harmless: Call = { name: 'getpid', args: [] }

interface Call {
  name: SyscallName
  args: (bigint | number)[]
}

/**
 * Calls that a thread of the workload makes in one run, with room for their output: two stops for all of them instead
 * of two for each. Add all calls, run the batch, then read the results. If we die, the thread still makes all calls.
 */
export class CallBatch {
  readonly #process: StoppedProcess
  readonly #thread: WorkloadThread
  readonly #sigCaught: bigint
  readonly #calls: Call[] = []
  #room = 0
  #written: Buffer | null = null
  #results: bigint[] = []

  /** @param status of the process, read when all of its threads were stopped */
  constructor(process: StoppedProcess, thread: WorkloadThread, status: Pick<ProcStatus, 'sigCaught'>) {
    this.#process = process
    this.#thread = thread
    this.#sigCaught = status.sigCaught
  }

  /** Reserves room for the output of calls in this batch. Its previous content is undefined. */
  room(bytes: number): bigint {
    const at = this.#room
    this.#room += (bytes + 7) & ~7
    if (this.#room > roomBytes)
      throw new PageferryError('INTERNAL', 'a batch writes more than there is room for')
    return this.#process.scratch + BigInt(at)
  }

  /** Returns a function for the call's result, to be called after the run. It throws the errno that the thread got. */
  add(name: SyscallName, ...args: (bigint | number)[]): () => bigint {
    const result = this.tryAdd(name, ...args)
    return () => {
      if (result() < 0n && result() >= -4095n) throw remoteError(name, Number(-result()), this.#thread.tid)
      return result()
    }
  }

  /** Like `add`, but a negative errno is a result. */
  tryAdd(name: SyscallName, ...args: (bigint | number)[]): () => bigint {
    const i = this.#calls.push({ name, args }) - 1
    if (i >= maxBatchCalls) throw new PageferryError('INTERNAL', 'a batch has too many calls')
    return () => this.#results[i]
  }

  run(): void {
    const mark = this.#thread.markWith(this.#sigCaught)
    const rows = [...this.#calls, mark ?? harmless]
    const table = new BigUint64Array((rows.length + 1) * (tableRowBytes / 8))
    for (const [i, { name, args }] of rows.entries()) {
      table[i * 8] = BigInt(SYS[name])
      for (const [n, value] of args.entries()) table[i * 8 + 1 + n] = BigInt.asUintN(64, BigInt(value))
      table[i * 8 + 7] = 1n
    }
    const address = this.#process.scratch + BigInt(roomBytes)
    this.#process.write(address, new Uint8Array(table.buffer))
    if (mark === null) this.#thread.stepTable(address, rows.length)
    else this.#thread.runTable(address, address + BigInt(this.#calls.length * tableRowBytes))
    const after = this.#process.read(address, this.#calls.length * tableRowBytes)
    this.#results = this.#calls.map((_, i) => after.readBigInt64LE(i * tableRowBytes + tableResultOffset))
    this.#written = this.#process.read(this.#process.scratch, this.#room)
  }

  /** Reads the output that calls have written into `room`. */
  read(address: bigint, bytes: number): Buffer {
    if (this.#written === null) throw new PageferryError('INTERNAL', 'the batch has not run yet')
    const at = Number(address - this.#process.scratch)
    return this.#written.subarray(at, at + bytes)
  }
}
