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
}
