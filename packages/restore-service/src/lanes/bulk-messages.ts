import type { ErrorInfo } from '@pageferry/base'
import type { DialOptions } from '@pageferry/wire/sockets'

/*
 * What the worker and the threads of its bulk lanes say to each other, through a port for each lane. A thread is given the
 * ports of the lanes that it carries.
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
 *      | taken                                      |     answers a batch that came along: it may be acknowledged
 *      |------------------------------------------->|
 */

/** Pages of one pre-dump round or of the final one go into the stopped skeleton. */
export interface RoundTarget {
  kind: 'round'
  asId: number
  round: number
  /** The skeleton, as this host sees it. */
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

/** A batch of the lazy phase, when its thread has done what it can. */
export interface Pushed {
  asId: number
  sequence: number
  runs: Float64Array
  zeroRuns: Float64Array
  /** Pages that were missing and are there now. */
  installed: number
  /** Pages in no registered area. */
  lost: number[]
  /** Nothing more can be installed: the address space is gone, or all of this is over. */
  isClosed: boolean
  /** Their hashes should have been written and were not. */
  isUnlogged: boolean
  /** The pages of `runs`: there are places for them that only the worker knows. */
  payload?: Uint8Array
}

export type FromBulkThread =
  | { type: 'dialled' }
  | { type: 'notDialled'; error: ErrorInfo }
  | { type: 'lost'; error: ErrorInfo }
  | { type: 'installed'; round: number; pages: number }
  | { type: 'pushed'; batch: Pushed }
