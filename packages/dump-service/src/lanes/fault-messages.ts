import type { ErrorInfo } from '@pageferry/base'
import type { CompressionCounts, LaneTerms } from '@pageferry/wire'

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
 *      |                  served, discarded         |
 *      |<-------------------------------------------|
 *      | pushed, lost                               |     on the bulk lanes
 *      |------------------------------------------->|
 *      | compress                                   |     it was measured there that it gains, or not any more
 *      |------------------------------------------->|
 *      |                  lost                      |     and connected again
 *      |<-------------------------------------------|
 */

/** What is served. */
export interface FaultTarget {
  pid: number
  asId: number
  /** The round number of everything that is sent now. */
  round: number
  /** A run table of PE_LAZY pages of the final pagemap: nothing else may be asked for. */
  lazy: Float64Array
}

export type ToFaultThread =
  | { type: 'serve'; target: FaultTarget }
  | { type: 'pushed' | 'lost'; runs: Float64Array }
  | { type: 'compress'; isOn: boolean }

export type FromFaultThread =
  | { type: 'listening'; port: number }
  | { type: 'notListening'; error: ErrorInfo }
  | { type: 'connected'; resumed: boolean }
  | { type: 'lost'; error: ErrorInfo }
  /** Pairs of page and number of pages, in the order in which they were asked for. */
  | { type: 'served'; pages: Float64Array; bytesSent: number; compressed: CompressionCounts }
  | { type: 'discarded'; runs: Float64Array }

/** Of the thread. */
export interface FaultThreadData {
  host: string
  /** 0: any. A successor takes the port of its predecessor. */
  port: number
  migrationId: string
  token: string
  nrBulkLanes: number
  terms?: LaneTerms
  /** Whether replies of several pages are compressed until the worker says otherwise. Default false. */
  compress?: boolean
}
