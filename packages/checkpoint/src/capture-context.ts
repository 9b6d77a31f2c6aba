import type { ProcStatus } from './proc/status.js'
import type { StoppedProcess } from './remote/stopped-process.js'

/** Input of every kind's dump function: the stopped process with a scratch area mapped. */
export interface CaptureContext {
  pid: number
  process: StoppedProcess
  /** Read after all threads were stopped and the scratch area was mapped. */
  status: ProcStatus
  /** The workload's CLOCK_MONOTONIC minus ours. */
  monotonicOffsetNs: bigint
}
