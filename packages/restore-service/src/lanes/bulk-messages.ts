import type { ErrorInfo } from '@pageferry/base'
import type { DialOptions } from '@pageferry/wire/sockets'

/*
 * Messages between the worker and the threads of its bulk lanes, through one port per lane. A thread gets the ports of
 * the lanes that it carries.
 *
 *   worker                                        thread
 *      | dial                                       |
 *      |------------------------------------------->|     again after each loss
 *      |                  dialled or notDialled     |
 *      |<-------------------------------------------|
 *      | open (round)                               |     the skeleton has the round's memory map
 *      |------------------------------------------->|
 *      |                  installed, per batch      |
 *      |<-------------------------------------------|
 *      | close                                      |     the round is complete
 *      |------------------------------------------->|
 *      | open (lazy)                                |     the workload runs
 *      |------------------------------------------->|
 *      |                  pushed, of some batches    |
 *      |<-------------------------------------------|
 *      | taken                                      |     answers a batch that came with its pages: acknowledge it
 *      |------------------------------------------->|
 */

/** Pages of one pre-dump round or of the final one go into the stopped skeleton. */
export interface RoundTarget {
  kind: 'round'
  asId: number
  round: number
  /** Pid of the skeleton, as this host sees it. */
  pid: number
  uffd: number
  /** Where pages may lie: [first page, number of pages, 1 where userfaultfd is registered], ascending. */
  ranges: Float64Array
  /** Pages are read back, and their hashes go into this HashLog. */
  hashLog?: string
}

/** Pushed pages go into the running workload. */
export interface LazyTarget {
  kind: 'lazy'
  asId: number
  round: number
  uffd: number
  gate: SharedArrayBuffer
  /** The hashes of pages go into this HashLog. */
  hashLog?: string
}

export type Target = RoundTarget | LazyTarget

export type ToBulkThread =
  | { type: 'dial'; options: DialOptions }
  | { type: 'open'; target: Target }
  | { type: 'close' }
  | { type: 'taken'; sequence: number; bytes: number }
  /** The lane is closed with the code of the error. */
  | { type: 'refuse'; error: ErrorInfo }

/** A batch of the lazy phase, after its thread has installed what it can. */
export interface Pushed {
  asId: number
  sequence: number
  runs: Float64Array
  zeroRuns: Float64Array
  /** Pages that were missing and are installed now. */
  installed: number
  /** Pages outside every registered area. */
  lost: number[]
  /** Nothing more can be installed: the address space is gone, or the phase is over. */
  isClosed: boolean
  /** The hashes of these pages should have been written and were not. */
  isUnlogged: boolean
  /** The pages of `runs`, when there are places for them that only the worker knows. */
  payload?: Uint8Array
}

export type FromBulkThread =
  | { type: 'dialled' }
  | { type: 'notDialled'; error: ErrorInfo }
  | { type: 'lost'; error: ErrorInfo }
  | { type: 'installed'; round: number; pages: number }
  | { type: 'pushed'; batch: Pushed }
