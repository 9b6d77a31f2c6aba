import { constants } from 'node:os'
import type { ErrorInfo } from '@pageferry/base'
import type { Lane } from '@pageferry/wire'
import type { ErrorMessage } from './messages.js'

/*
 * Common rules of both machines, and the duties of a driver.
 *
 * A machine is a step function: state + event -> new state + effects. It knows no socket, file, clock or process. The
 * driver (one per worker; `Driver` in driver.ts is the loop) executes the effects:
 *
 *   1. One event at a time. The new state is stored, then the effects are executed in order, each to its end,
 *      before the next event is taken. So a `journal` is durable before the `send` behind it.
 *   2. Step effects (STEP_OF_EFFECT in driver.ts) only start work and return at once. Their end comes back as
 *      `stepDone` or `stepFailed`. Other events are stepped meanwhile.
 *   3. An effect that fails drops the rest of its list. `effectFailed`, or for a journal `journalFailed`, is the
 *      next event, before anything already queued. `written: 'no'` promises that a restart will not read the
 *      record; everything else is 'unknown'.
 *   4. `send` never fails. Without a lane the message is dropped: on `reconnected` the machines repeat every message
 *      that the peer may have missed. `reconnect` and `connect` start dialling and return; dialling twice is once.
 *   5. `resumeWorkload`, `discardSkeleton`, `killOriginal`, `detachAndKeepFrozen`, `detachSkeleton` and
 *      `thawSkeleton` are idempotent: after a crash they are executed again. The first four succeed when the
 *      process is gone (that is a `workloadExited` of its own). The first three stop a running step and wait
 *      for its end first; that step's result is not fed back any more.
 *   6. `restart` ends this worker without touching the workload. The supervisor starts another one (with
 *      backoff), which continues from the journal. A driver that cannot continue does the same.
 *   7. `finish` means that the outcome stands. The machine can still answer a peer that missed the last
 *      message, so a driver stays for a while (until the peer closes its control lane, or a linger time).
 *   8. All messages of a connection are fed before its `laneLost`, none after it.
 *   9. After a restart the driver first checks whether the workload still exists, and feeds `workloadExited`
 *      before the result of any step.
 */

/** Where the workload is, as far as this side can know. */
export type WorkloadAt =
  | 'running-on-source'
  | 'frozen-on-source'
  /** The destination's view before the handover: the source has it, running or frozen. */
  | 'on-source'
  /** Committed: frozen on the source, and perhaps already running on the destination. */
  | 'handed-over'
  | 'running-on-destination'
  /** It ended by itself. */
  | 'exited'
  /** It vanished after the commit without a known end; the original is still frozen on the source. */
  | 'lost'

/** How a process ended; 'unknown' when even its keeper is gone (the host was restarted). */
export interface WorkloadExit {
  readonly kind: 'exited' | 'signaled' | 'unknown'
  readonly value?: number
}

/** `kept`: it runs on the destination, where its memory was not proven; the original stays frozen on the source. */
export type Outcome = 'migrated' | 'kept' | 'resumed' | 'abandoned' | 'exited' | 'discarded'

/**
 * Events of both machines. `S` names the steps, `E` the effects that can fail, `R` the records, `M` the messages of the
 * other side.
 */
export type CommonEvent<S extends string, E extends string, R, M> =
  | { readonly type: 'message'; readonly message: M }
  /** Every lane of the migration is up for the first time. */
  | { readonly type: 'connected' }
  | { readonly type: 'laneLost'; readonly lane: Lane; readonly index?: number }
  | { readonly type: 'reconnected'; readonly lane: Lane; readonly index?: number }
  /** The peer was reached and does not know this migration. Never the same as Abandoned. */
  | { readonly type: 'peerUnknown' }
  | { readonly type: 'stepDone'; readonly step: S }
  /** `neverRan`: a failed thaw after which the restored process certainly executed no instruction. */
  | {
      readonly type: 'stepFailed'
      readonly step: S
      readonly error: ErrorInfo
      readonly neverRan?: boolean
    }
  | { readonly type: 'effectFailed'; readonly effect: E; readonly error: ErrorInfo }
  | {
      readonly type: 'journalFailed'
      readonly record: R
      readonly written: 'no' | 'unknown'
      readonly error: ErrorInfo
    }
  /** The user (or the service's shutdown) wants it to end. */
  | { readonly type: 'cancel' }
  /** A limit of the driver ran out; `what` names it. */
  | { readonly type: 'timeout'; readonly what: string }
  | { readonly type: 'workloadExited'; readonly exit: WorkloadExit }

/**
 * Effects of both machines: `R` are the records, `O` the messages that it sends, `D` those that it passes to its steps.
 */
export type CommonEffect<R, O, D> =
  | { readonly type: 'send'; readonly message: O }
  /** Append and fdatasync before the next effect. `unsynced`: it must survive this worker, but not the machine. */
  | { readonly type: 'journal'; readonly record: R; readonly unsynced?: true }
  /** Passes a message that is legal in this state to the running step. */
  | { readonly type: 'deliver'; readonly message: D }
  /** Logs the error and shows it to clients. Changes nothing. */
  | { readonly type: 'error'; readonly error: ErrorInfo }
  | { readonly type: 'restart'; readonly error: ErrorInfo }
  | { readonly type: 'finish'; readonly outcome: Outcome; readonly error?: ErrorInfo }

export interface Transition<State, Effect> {
  readonly state: State
  readonly effects: readonly Effect[]
}

export const CANCELLED: ErrorInfo = { code: 'CANCELLED', message: 'the migration was cancelled' }
export const TOO_LATE: ErrorInfo = {
  code: 'CONFLICT',
  message: 'the workload has been handed over to the destination: cancelling is no longer possible',
}
/** For a successor that must give a reason when the journal has none. */
export const UNEXPLAINED: ErrorInfo = { code: 'INTERNAL', message: 'no reason was given' }
export const PEER_UNKNOWN: ErrorInfo = {
  code: 'PEER_UNREACHABLE',
  message: 'the other side does not know this migration; that says nothing about the workload',
}

/** For a journal that does not say which pages differ. */
export const UNPROVEN: ErrorInfo = {
  code: 'VERIFY_FAILED',
  message: 'the memory of the workload was not proven to be the original',
}

export function timeoutError(what: string): ErrorInfo {
  return { code: 'TIMEOUT', message: `timeout: ${what}` }
}

export function laneError(lane: string): ErrorInfo {
  return { code: 'PEER_UNREACHABLE', message: `the ${lane} lane to the other side was lost` }
}

/** How a process ended, as the end of a sentence. */
export function exitText({ kind, value = 0 }: WorkloadExit): string {
  if (kind === 'exited') return `exited with status ${value}`
  if (kind === 'unknown') return 'vanished without a known end'
  const name = Object.entries(constants.signals).find(([, number]) => number === value)?.[0]
  return `was killed by ${name ?? `signal ${value}`}`
}

/** Names an event in an error without its content. */
export function eventText(event: CommonEvent<string, string, { type: string }, { type: string }>): string {
  if (event.type === 'message') return `message ${event.message.type}`
  if (event.type === 'stepDone' || event.type === 'stepFailed') return `${event.type} ${event.step}`
  if (event.type === 'effectFailed') return `effectFailed ${event.effect}`
  if (event.type === 'laneLost' || event.type === 'reconnected') return `${event.type} ${event.lane}`
  return event.type
}

/** The peer's error, with its role in front, so that no log blames the wrong machine. */
export function peerError(
  role: 'source' | 'destination',
  message: ErrorMessage | { readonly type: 'abandoned'; readonly reason: string },
): ErrorInfo {
  if (message.type === 'abandoned') return { code: 'REMOTE', message: `${role}: ${message.reason}` }
  return { ...message.error, message: `${role}: ${message.error.message}` }
}
