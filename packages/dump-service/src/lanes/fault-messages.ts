import type { ErrorInfo } from '@pageferry/base'
import type { LaneTerms } from '@pageferry/wire'
import type { SharedPages } from '../lazy/sent-bitmap.js'

/*
 * Messages between the worker and the thread of the fault lane.
 *
 *   worker                                        thread
 *      |                  listening or notListening |     on the port that it was started with
 *      |<-------------------------------------------|
 *      |                  connected                 |     the destination said a good Hello
 *      |<-------------------------------------------|
 *      | serve                                      |     the workload was handed over
 *      |------------------------------------------->|
 *      | compress                                   |     the bulk lanes measured that it gains, or not any more
 *      |------------------------------------------->|
 *      |                  lost                      |     and connected again
 *      |<-------------------------------------------|
 *
 * Two shared areas of memory replace further messages: a SentBitmap says which pages were sent, a FaultFeed what the
 * replies were.
 */

/** The memory that the thread serves. */
export interface FaultTarget {
  pid: number
  asId: number
  /** The round number of all frames from now on. */
  round: number
  /** Bitmap of the PE_LAZY pages of the final pagemap: no others may be requested. */
  sent: SharedPages
}

export type ToFaultThread = { type: 'serve'; target: FaultTarget } | { type: 'compress'; isOn: boolean }

export type FromFaultThread =
  | { type: 'listening'; port: number }
  | { type: 'notListening'; error: ErrorInfo }
  | { type: 'connected'; resumed: boolean }
  | { type: 'lost'; error: ErrorInfo }

/** Data that the thread starts with. */
export interface FaultThreadData {
  host: string
  /** 0: any free port. A successor takes the port of its predecessor. */
  port: number
  migrationId: string
  token: string
  nrBulkLanes: number
  terms?: LaneTerms
  /** Memory of the FaultFeed that the thread writes. */
  feed: SharedArrayBuffer
  /** Whether replies of several pages are compressed until the worker says otherwise. Default false. */
  compress?: boolean
}
