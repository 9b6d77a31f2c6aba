import type { ErrorInfo } from '@pageferry/base'
import type { LaneTerms } from '@pageferry/wire'
import type { SharedPages } from '../lazy/sent-bitmap.js'

/*
 * What the worker and the thread of the fault lane say to each other.
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
 * Which pages were sent they tell each other by a SentBitmap, and what the replies were by a FaultFeed: memory that both
 * look at.
 */

/** What is served. */
export interface FaultTarget {
  pid: number
  asId: number
  /** The round number of everything that is sent now. */
  round: number
  /** Of the PE_LAZY pages of the final pagemap: no others may be asked for. */
  sent: SharedPages
}

export type ToFaultThread = { type: 'serve'; target: FaultTarget } | { type: 'compress'; isOn: boolean }

export type FromFaultThread =
  | { type: 'listening'; port: number }
  | { type: 'notListening'; error: ErrorInfo }
  | { type: 'connected'; resumed: boolean }
  | { type: 'lost'; error: ErrorInfo }

/** Of the thread. */
export interface FaultThreadData {
  host: string
  /** 0: any. A successor takes the port of its predecessor. */
  port: number
  migrationId: string
  token: string
  nrBulkLanes: number
  terms?: LaneTerms
  /** Of the FaultFeed that it writes. */
  feed: SharedArrayBuffer
  /** Whether replies of several pages are compressed until the worker says otherwise. Default false. */
  compress?: boolean
}
