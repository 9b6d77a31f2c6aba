import type { ProcStatus } from './proc/status.js'
import type { StoppedProcess } from './remote/stopped-process.js'

/** Why something cannot be moved: what it is, and what would have to change. */
export interface Problem {
  what: string
  reason: string
}

/** What every kind's dump function works with: the stopped process with a scratch area mapped. */
export interface CaptureContext {
  pid: number
  process: StoppedProcess
  /** Read when all threads were stopped and the scratch area was mapped. */
  status: ProcStatus
}
