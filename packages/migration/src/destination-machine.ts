import { type ErrorInfo, PageferryError } from '@pageferry/base'
import type { FrameOf, Lane } from '@pageferry/wire'
import {
  CANCELLED,
  type CommonEffect,
  type CommonEvent,
  eventText,
  exitText,
  laneError,
  PEER_UNKNOWN,
  peerError,
  TOO_LATE,
  type Transition,
  timeoutError,
  type WorkloadExit,
} from './machine.js'
import type { DrainedMessage, FromDestination, RoundFrame, ToDestination } from './messages.js'

/*
 * The destination's half of a migration. The table is the specification.
 *
 *  state       | event                     | effects, in this order                          | next state
 *  ------------+---------------------------+-------------------------------------------------+-----------
 *  (start)     |                           | connect                                         | connecting
 *  connecting  | connected                 |                                                 |
 *              | message begin             | startPrepare                                    | preparing
 *  preparing   | prepare done              | send prepared                                   | receiving
 *  receiving   | message dumpEnd           | startRestore                                    | restoring
 *  restoring   | restore done              | journal ready, send ready                       | ready
 *  these four  | anything else             | send failed, discardSkeleton, finish            | discarded
 *  ============| ===== Ready was sent: the source may have committed =======================| ==========
 *  ready       | message commit            | detachSkeleton, journal commit, thawSkeleton    | committed
 *              | message cancel            | discardSkeleton, journal done, finish           | discarded
 *              | message failed            | error (it may have committed: waits)            |
 *              | lane lost                 | reconnect                                       |
 *              | timeout, cancel, skeleton | journal abandoned, send abandoned,              |
 *              |   died, anything else     |   discardSkeleton (reconnect)                   | abandoned
 *  committed   | thaw done                 | send running, startPostcopy, journal running    | running
 *              | thaw failed, certainly    | journal abandoned, send abandoned,              |
 *              |   never ran, not restarted|   discardSkeleton (reconnect)                   | abandoned
 *              | thaw failed otherwise     | restart                                         |
 *  running     | postcopy done             | journal drained, send drained                   | drained
 *              | postcopy failed with      | the same, with the error                        | drained
 *              |   VERIFY_FAILED           |                                                 |
 *              | lane lost                 | reconnect                                       |
 *              | workload exited           | (remembered; the step ends when nothing is lazy)|
 *              | message commit (again)    | send running                                    |
 *  drained     | message released or kept  | journal done, finish                            | done
 *              | message commit (again)    | send drained                                    |
 *  abandoned   | message cancel            | journal done, finish                            | abandoned
 *              | message commit            | send abandoned                                  |
 *  committed,  | workload vanished, its    |                                                 |
 *  running     |   end is unknown          | error                                           | lost
 *  committed   | workload exited by itself,|                                                 |
 *   (a restart)|   or after `running`      | (remembered; it ends as one that has run)       |
 *  lost        | cancel (the operator's    | journal abandoned, send abandoned,              |
 *              |   decision)               |   discardSkeleton (reconnect)                   | abandoned
 *
 * The step postcopy ends when no page is lazy and the proof (--verify) is complete. A failed proof comes too late for a
 * resume on the source: the workload runs here, and only here. So the migration ends as always, with the error in the
 * record and in Drained. The source then keeps the original, and the outcome is `kept` on both sides.
 *
 * The frames of a round (image, roundBegin, roundEnd) are data and decide nothing. The worker takes them as they
 * arrive, in the state `receiving`, and makes no event of them. The driver's queue stands still while an effect is
 * awaited: in the freeze the frames would wait there for nothing. A failed round is the event `stepFailed`. Hashes of
 * the original (pageHashes) answer the proof's requests and go to it alone.
 *
 * On `reconnected` of the control lane ready, running, drained and abandoned repeat their message. The last three also
 * do so on `timeout`, which a driver sends from time to time while the answer is missing.
 *
 * detachSkeleton (clear PTRACE_O_EXITKILL, detach, still frozen) comes before the commit is journalled: after the
 * record the skeleton must outlive this worker. Thawing is the resume, and it is idempotent. A restart that reads
 * Commit thaws; one that reads Ready without Commit kills the skeleton.
 *
 * `running` means for certain that the workload ran. Without it, a process that a successor finds killed may have been
 * killed while it was frozen, and then the original must survive. The workload must not wait for a disk, so the record
 * comes after everything else and is not synchronised: when the machine goes down, so does the process.
 *
 * Abandoned is journalled before it is sent, and bars a later Commit. It is repeated until the source has received it
 * (`cancel`): a source that committed waits, frozen, for nothing else. A restarted host finds `lost`: whether and how
 * far the workload ran is unknown, so only a human may let the original run again.
 */

export const DESTINATION_STATES = [
  'connecting',
  'preparing',
  'receiving',
  'restoring',
  'ready',
  'committed',
  'running',
  'drained',
  'done',
  'discarded',
  'abandoned',
  'lost',
] as const
export type DestinationStateName = (typeof DESTINATION_STATES)[number]

export interface DestinationState {
  readonly name: DestinationStateName
  /** The control lane is up. */
  readonly connected: boolean
  /** Commit was journalled by this worker itself, and not found in the journal: no earlier worker can have thawed. */
  readonly fresh: boolean
  /** An earlier worker has journalled that the workload runs. */
  readonly ran?: true
  /** abandoned: the source has received it. */
  readonly settled: boolean
  /** The workload's own end, after it was handed over. */
  readonly exit?: WorkloadExit
  /** Why it did not succeed. */
  readonly error?: ErrorInfo
}

export type DestinationStep = 'connect' | 'prepare' | 'restore' | 'thaw' | 'postcopy'
export type DestinationRecord =
  | { readonly type: 'ready' }
  | { readonly type: 'commit' }
  | { readonly type: 'abandoned'; readonly reason: string }
  | { readonly type: 'running' }
  /** With `error` the memory was not proven to be the original's. */
  | { readonly type: 'drained'; readonly exit?: WorkloadExit; readonly error?: ErrorInfo }
  /** Nothing is left to send to the source. */
  | { readonly type: 'done' }

export type DestinationAction =
  /** Step 'connect': dial every lane. Success is the event `connected`, not `stepDone`. */
  | 'connect'
  /** Step 'prepare': checks, keeper, skeleton. */
  | 'startPrepare'
  /** Step 'restore': reconcile, all state, frozen in its own cgroup, confirmed by the keeper. */
  | 'startRestore'
  | 'detachSkeleton'
  /** Step 'thaw'. */
  | 'thawSkeleton'
  /** Step 'postcopy': take the userfaultfd (over), serve faults; done when no page is lazy and the proof is complete. */
  | 'startPostcopy'
  /** Kills it, if there is one. */
  | 'discardSkeleton'

/** The message that belongs to the running step. */
type Delivered = FrameOf<'clockReply'>

export type DestinationEvent = CommonEvent<
  DestinationStep,
  DestinationAction | 'reconnect',
  DestinationRecord,
  ToDestination
>
export type DestinationEffect =
  | CommonEffect<DestinationRecord, FromDestination, Delivered>
  | { readonly type: DestinationAction }
  /** Dials this lane (without an index: every lane of the kind) in the background until it is up. */
  | { readonly type: 'reconnect'; readonly lane: Lane; readonly index?: number }
export type DestinationTransition = Transition<DestinationState, DestinationEffect>

/** States in which they are delivered. The table above has all other legal messages. */
const DELIVERED: readonly DestinationStateName[] = ['preparing', 'receiving', 'restoring']

/**
 * Whether the worker has to take a frame of a round now; false: the migration was given up while the frame was under
 * way.
 * @throws PROTOCOL when the source has no reason to send it
 */
export function takesRoundFrame(state: DestinationState, type: RoundFrame['type']): boolean {
  if (state.name === 'receiving') return true
  if (state.name === 'discarded' || state.name === 'abandoned') return false
  throw new PageferryError('PROTOCOL', unexpectedText(type, state))
}

const DISCARD: DestinationEffect = { type: 'discardSkeleton' }
const DONE: DestinationEffect = { type: 'journal', record: { type: 'done' } }
const RAN: DestinationEffect = { type: 'journal', record: { type: 'running' }, unsynced: true }
const RECONNECT: DestinationEffect = { type: 'reconnect', lane: 'control' }

const send = (message: FromDestination): DestinationEffect => ({ type: 'send', message })
const error = (info: ErrorInfo): DestinationEffect => ({ type: 'error', error: info })
const restart = (info: ErrorInfo): DestinationEffect => ({ type: 'restart', error: info })
const to = (
  state: DestinationState,
  name: DestinationStateName,
  ...effects: DestinationEffect[]
): DestinationTransition => ({ state: { ...state, name }, effects })
const stay = (state: DestinationState, ...effects: DestinationEffect[]): DestinationTransition => ({
  state,
  effects,
})

const INITIAL: DestinationState = { name: 'connecting', connected: false, fresh: false, settled: false }

/** A new migration: nothing exists here yet. */
export function startDestination(): DestinationTransition {
  return stay(INITIAL, { type: 'connect' })
}

/**
 * Resumes a migration from the journal. Records of an unknown type are ignored. Abandoned wins over Commit: it is only
 * journalled when the skeleton certainly does not run.
 */
export function destinationStateFromJournal(
  records: readonly {
    readonly type: string
    readonly reason?: string
    readonly exit?: WorkloadExit
    readonly error?: ErrorInfo
  }[],
): DestinationTransition {
  const find = (type: string) => records.find((record) => record.type === type)
  const done = find('done') !== undefined
  const cause: ErrorInfo = {
    code: 'INTERNAL',
    message: 'the worker on the destination ended before the commit',
  }
  const abandoned = find('abandoned')
  if (abandoned) {
    const error: ErrorInfo = { code: 'REMOTE', message: abandoned.reason || 'the migration was given up' }
    const state: DestinationState = { ...INITIAL, settled: done, error }
    if (done) return to(state, 'abandoned', DISCARD, { type: 'finish', outcome: 'abandoned', error })
    return to(state, 'abandoned', DISCARD, RECONNECT)
  }
  const drained = find('drained')
  if (drained) {
    const { exit, error } = drained
    const state: DestinationState = { ...INITIAL, exit, ...(error && { error }) }
    if (done) return to(state, 'done', finishHere(state))
    return to(state, 'drained', RECONNECT)
  }
  if (find('commit')) {
    return to(
      { ...INITIAL, ...(find('running') && { ran: true }) },
      'committed',
      { type: 'thawSkeleton' },
      RECONNECT,
      { type: 'reconnect', lane: 'fault' },
      { type: 'reconnect', lane: 'bulk' },
    )
  }
  if (find('ready') && !done) return abandon({ ...INITIAL }, cause)
  return to({ ...INITIAL, error: cause }, 'discarded', DISCARD, {
    type: 'finish',
    outcome: 'discarded',
    error: cause,
  })
}

/** Nothing more is expected. The machine still answers a peer that missed the last message. */
export function isDestinationFinal(state: DestinationState): boolean {
  return state.name === 'done' || state.name === 'discarded' || (state.name === 'abandoned' && state.settled)
}

export function stepDestination(state: DestinationState, event: DestinationEvent): DestinationTransition {
  if (event.type === 'message' && event.message.type === 'clockReply' && DELIVERED.includes(state.name)) {
    return stay(state, { type: 'deliver', message: event.message })
  }
  switch (state.name) {
    case 'connecting':
    case 'preparing':
    case 'receiving':
    case 'restoring':
      return expected(state, event) ?? beforeReady(state, event)
    case 'ready':
      return whenReady(state, event)
    case 'committed':
      return whenCommitted(state, event)
    case 'running':
      return whenRunning(state, event)
    case 'drained':
    case 'abandoned':
    case 'lost':
      return untilHeard(state, event)
    case 'done':
    case 'discarded':
      return atTheEnd(state, event)
  }
}

/** The normal path, up to Ready; undefined for every other event. */
function expected(state: DestinationState, event: DestinationEvent): DestinationTransition | undefined {
  if (event.type === 'connected' && !state.connected) return stay({ ...state, connected: true })
  switch (state.name) {
    case 'connecting':
      // Begin may overtake the last Welcome: the lanes are separate connections.
      if (isMessage(event, 'begin')) return to(state, 'preparing', { type: 'startPrepare' })
      return undefined
    case 'preparing':
      if (isDone(event, 'prepare')) return to(state, 'receiving', send({ type: 'prepared' }))
      return undefined
    case 'receiving':
      if (isMessage(event, 'dumpEnd')) return to(state, 'restoring', { type: 'startRestore' })
      return undefined
    case 'restoring':
      if (!isDone(event, 'restore')) return undefined
      return to(state, 'ready', { type: 'journal', record: { type: 'ready' } }, send({ type: 'ready' }))
    default:
      return undefined
  }
}

/** Any other event before Ready ends the migration: the source has not committed and now never will. */
function beforeReady(state: DestinationState, event: DestinationEvent): DestinationTransition {
  switch (event.type) {
    case 'cancel':
      return discard(state, CANCELLED)
    case 'timeout':
      return discard(state, timeoutError(event.what))
    case 'laneLost':
      return discard(state, laneError(event.lane))
    case 'peerUnknown':
      return discard(state, PEER_UNKNOWN)
    case 'workloadExited':
      return discard(state, skeletonDied(event.exit))
    case 'stepFailed':
    case 'effectFailed':
    case 'journalFailed':
      return discard(state, event.error)
    case 'message':
      if (event.message.type === 'cancel' || event.message.type === 'failed') {
        const cause = peerError('source', event.message)
        return to({ ...state, error: cause }, 'discarded', DISCARD, {
          type: 'finish',
          outcome: 'discarded',
          error: cause,
        })
      }
      break
  }
  const cause = unexpected(state, event)
  const { state: next, effects } = discard(state, cause)
  return { state: next, effects: [error(cause), ...effects] }
}

/** Failed is sent first: the source resumes while the skeleton, which cannot run without Commit, is removed. */
function discard(state: DestinationState, cause: ErrorInfo): DestinationTransition {
  return to({ ...state, error: cause }, 'discarded', send({ type: 'failed', error: cause }), DISCARD, {
    type: 'finish',
    outcome: 'discarded',
    error: cause,
  })
}

/** Only for a skeleton that certainly does not run. From here no Commit is ever accepted. */
function abandon(state: DestinationState, cause: ErrorInfo): DestinationTransition {
  const said: DestinationEffect[] = [
    { type: 'journal', record: { type: 'abandoned', reason: cause.message } },
    send({ type: 'abandoned', reason: cause.message }),
    DISCARD,
  ]
  if (!state.connected) said.push(RECONNECT)
  return to({ ...state, settled: false, error: cause }, 'abandoned', ...said)
}

function whenReady(state: DestinationState, event: DestinationEvent): DestinationTransition {
  switch (event.type) {
    case 'message':
      if (event.message.type === 'commit') {
        return to(
          { ...state, fresh: true },
          'committed',
          { type: 'detachSkeleton' },
          { type: 'journal', record: { type: 'commit' } },
          { type: 'thawSkeleton' },
        )
      }
      if (event.message.type === 'cancel') {
        const cause = peerError('source', event.message)
        return to({ ...state, error: cause }, 'discarded', DISCARD, DONE, {
          type: 'finish',
          outcome: 'discarded',
          error: cause,
        })
      }
      // The original died after the commit. The copy here is the only one left, so the Commit is still awaited.
      if (event.message.type === 'failed') return stay(state, error(peerError('source', event.message)))
      break
    case 'journalFailed':
      // Ready was not sent, so the source cannot have committed.
      return discard(state, event.error)
    case 'laneLost':
      return lost(state, event.lane, event.index)
    case 'connected':
      return stay({ ...state, connected: true })
    case 'reconnected':
      return reconnected(state, event.lane, { type: 'ready' })
    case 'peerUnknown':
      return stay(state, error(PEER_UNKNOWN), RECONNECT)
    case 'cancel':
      return abandon(state, CANCELLED)
    case 'timeout':
      return abandon(state, timeoutError(event.what))
    case 'workloadExited':
      return abandon(state, skeletonDied(event.exit))
    case 'stepFailed':
    case 'effectFailed':
      return abandon(state, event.error)
  }
  const cause = unexpected(state, event)
  const { state: next, effects } = abandon(state, cause)
  return { state: next, effects: [error(cause), ...effects] }
}

function whenCommitted(state: DestinationState, event: DestinationEvent): DestinationTransition {
  switch (event.type) {
    case 'stepDone':
      if (event.step !== 'thaw') break
      return to(
        state,
        'running',
        send({ type: 'running' }),
        { type: 'startPostcopy' },
        ...(state.ran ? [] : [RAN]),
      )
    case 'stepFailed':
      if (event.step === 'thaw' && event.neverRan && state.fresh) return abandon(state, event.error)
      return stay(state, error(event.error), restart(event.error))
    case 'effectFailed':
      // detachSkeleton comes before the record, so nothing was committed yet.
      if (event.effect === 'detachSkeleton' && state.fresh) return abandon(state, event.error)
      return stay(state, error(event.error), restart(event.error))
    case 'journalFailed':
      if (event.written === 'no') return abandon(state, event.error)
      return stay(state, restart(event.error))
    case 'workloadExited':
      // A frozen process cannot exit by itself but can be killed, so a dead process may never have run. If this worker
      // thaws it, the result of the thaw decides.
      if (state.fresh || event.exit.kind === 'exited') return stay({ ...state, exit: event.exit })
      if (state.ran && event.exit.kind === 'signaled') return stay({ ...state, exit: event.exit })
      return vanished(state, event.exit)
    case 'message':
      if (event.message.type === 'commit') return stay(state)
      break
  }
  return afterCommit(state, event, { type: 'running' }, false)
}

function whenRunning(state: DestinationState, event: DestinationEvent): DestinationTransition {
  switch (event.type) {
    case 'stepDone':
      if (event.step !== 'postcopy') break
      return drain(state)
    case 'workloadExited':
      // Children may still need lazy pages. They need none only after the end of the step.
      if (event.exit.kind === 'unknown') return vanished(state, event.exit)
      return stay({ ...state, exit: event.exit })
    case 'message':
      if (event.message.type === 'commit') return stay(state, send({ type: 'running' }))
      break
    case 'journalFailed':
      // Without `running` less is known about a workload that is killed later; nothing else is lost.
      return stay(state, error(event.error))
    case 'stepFailed':
      // Every page is here, and comparing again would find the same.
      if (event.step === 'postcopy' && event.error.code === 'VERIFY_FAILED') {
        return drain({ ...state, error: event.error })
      }
      return stay(state, error(event.error), restart(event.error))
    case 'effectFailed':
      return stay(state, error(event.error), restart(event.error))
  }
  return afterCommit(state, event, { type: 'running' }, true)
}

/** The source is not needed any more. `state.error`: the proof failed. */
function drain(state: DestinationState): DestinationTransition {
  const { exit, error } = state
  const record = { type: 'drained', ...(exit && { exit }), ...(error && { error }) } as const
  return to(state, 'drained', { type: 'journal', record }, send(drainedMessage(state)))
}

function drainedMessage({ error }: DestinationState): DrainedMessage {
  return { type: 'drained', ...(error && { error }) }
}

function finishHere({ error }: DestinationState): DestinationEffect {
  return error === undefined
    ? { type: 'finish', outcome: 'migrated' }
    : { type: 'finish', outcome: 'kept', error }
}

/**
 * drained, abandoned, lost: nothing runs here that needs the source. It must receive the message, or be told to wait.
 */
function untilHeard(state: DestinationState, event: DestinationEvent): DestinationTransition {
  const word: FromDestination =
    state.name === 'drained' ? drainedMessage(state) : { type: 'abandoned', reason: reason(state) }
  const speaks = state.name !== 'lost' && !state.settled
  switch (event.type) {
    case 'message':
      if (event.message.type === 'commit') return stay(state, ...(state.name === 'lost' ? [] : [send(word)]))
      if (['released', 'kept'].includes(event.message.type) && state.name === 'drained') {
        return to(state, 'done', DONE, finishHere(state))
      }
      if (event.message.type === 'cancel' && state.name === 'abandoned') {
        if (state.settled) return stay(state)
        return stay({ ...state, settled: true }, DONE, {
          type: 'finish',
          outcome: 'abandoned',
          error: state.error,
        })
      }
      break
    case 'cancel':
      if (state.name === 'lost') return abandon(state, CANCELLED)
      return stay(state, ...(state.name === 'drained' ? [error(TOO_LATE)] : []))
    case 'journalFailed':
      // An unwritten 'done' costs one more exchange after a restart. The other records must be written before their
      // message is sent.
      if (event.record.type === 'done') {
        return stay(state, { type: 'finish', outcome: 'abandoned', error: state.error })
      }
      return stay(state, error(event.error), restart(event.error))
    case 'effectFailed':
      return stay(state, error(event.error), restart(event.error))
    case 'stepDone':
    case 'stepFailed':
      // The failure of a step that no longer matters, such as the thaw of a process that is lost.
      return stay(state)
    case 'workloadExited':
      return stay({ ...state, exit: event.exit })
    case 'laneLost':
      if (event.lane !== 'control') return stay(state)
      break
  }
  return afterCommit(state, event, word, speaks)
}

/** Common to all states after Ready: they outlast the loss of the source. */
function afterCommit(
  state: DestinationState,
  event: DestinationEvent,
  word: FromDestination,
  speaks: boolean,
): DestinationTransition {
  switch (event.type) {
    case 'laneLost':
      return lost(state, event.lane, event.index)
    case 'reconnected':
      return reconnected(state, event.lane, speaks ? word : undefined)
    case 'connected':
      return stay({ ...state, connected: true })
    case 'peerUnknown':
      return stay(state, error(PEER_UNKNOWN), RECONNECT)
    case 'timeout':
      if (!state.connected) return stay(state, RECONNECT)
      return stay(state, ...(speaks ? [send(word)] : []))
    case 'cancel':
      return stay(state, error(TOO_LATE))
    case 'message':
      if (event.message.type === 'cancel' || event.message.type === 'failed') {
        return stay(state, error(peerError('source', event.message)))
      }
      return stay(state, error(unexpected(state, event)))
    default:
      return stay(state, error(unexpected(state, event)))
  }
}

function atTheEnd(state: DestinationState, event: DestinationEvent): DestinationTransition {
  switch (event.type) {
    case 'journalFailed':
      if (state.name === 'done') return stay(state, finishHere(state))
      return stay(state, { type: 'finish', outcome: 'discarded', error: state.error })
    case 'effectFailed':
      // The skeleton is still there.
      return stay(state, error(event.error), restart(event.error))
    case 'workloadExited':
      return stay(state.name === 'done' ? { ...state, exit: event.exit } : state)
    case 'message':
      if (event.message.type === 'commit') return stay(state, error(unexpected(state, event)))
      return stay(state)
    default:
      return stay(state)
  }
}

function lost(state: DestinationState, lane: Lane, index: number | undefined): DestinationTransition {
  const next = lane === 'control' ? { ...state, connected: false } : state
  return stay(next, { type: 'reconnect', lane, ...(index !== undefined && { index }) })
}

function reconnected(
  state: DestinationState,
  lane: Lane,
  word: FromDestination | undefined,
): DestinationTransition {
  if (lane !== 'control') return stay(state)
  return stay({ ...state, connected: true }, ...(word ? [send(word)] : []))
}

function vanished(state: DestinationState, exit: WorkloadExit): DestinationTransition {
  const cause: ErrorInfo = {
    code: 'WORKLOAD_EXITED',
    message: `the workload ${exitText(exit)} after it was handed over; the original stays frozen on the source`,
  }
  return to({ ...state, exit, error: cause }, 'lost', error(cause))
}

function skeletonDied(exit: WorkloadExit): ErrorInfo {
  return { code: 'WORKLOAD_EXITED', message: `the restored process ${exitText(exit)} before it could run` }
}

function reason(state: DestinationState): string {
  return state.error?.message ?? ''
}

function isMessage(event: DestinationEvent, type: ToDestination['type']): boolean {
  return event.type === 'message' && event.message.type === type
}

function isDone(event: DestinationEvent, step: DestinationStep): boolean {
  return event.type === 'stepDone' && event.step === step
}

function unexpected(state: DestinationState, event: DestinationEvent): ErrorInfo {
  return {
    code: event.type === 'message' ? 'PROTOCOL' : 'INTERNAL',
    message: unexpectedText(eventText(event), state),
  }
}

function unexpectedText(what: string, { name }: DestinationState): string {
  return `${what} is not expected by the destination in state ${name}`
}
