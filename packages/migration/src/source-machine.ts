import type { ErrorInfo } from '@pageferry/base'
import type { FrameOf } from '@pageferry/wire'
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
  UNEXPLAINED,
  UNPROVEN,
  type WorkloadAt,
} from './machine.js'
import type { FromSource, ToSource } from './messages.js'
import type { Mode } from './settings.js'

/*
 * The source's half of a migration. The table is the specification; the code below follows it top to bottom.
 *
 *  state         | event                  | effects, in this order                         | next state
 *  --------------+------------------------+------------------------------------------------+--------------
 *  (start)       |                        | startPrepare                                   | preparing
 *  preparing     | prepare done and       |                                                |
 *                |   connected            | send begin                                     | preparing
 *                | message prepared       | startPrecopy (mode postcopy: freezeWorkload)   | precopy/freezing
 *  precopy       | precopy done           | freezeWorkload                                 | freezing
 *  freezing      | freeze done            | startDump                                      | dumping
 *  dumping       | dump done              | send dumpEnd, detachAndKeepFrozen              | awaitingReady
 *  awaitingReady | message ready          | journal commit, send commit, startServing      | committed
 *  any of these  | anything else          | resumeWorkload, send cancel, finish            | resumed
 *                | workload exited        | send cancel, finish                            | exited
 *  ==============| ======= the commit: from here the source never resumes on its own =======| =============
 *  committed     | message running        |                                                | serving
 *                | message ready (again)  | send commit                                    |
 *  committed,    | message drained        | journal released, killOriginal, send released, |
 *  serving       |                        |   finish                                       | released
 *                | message drained, with  | journal kept, send kept, finish (killOriginal  |
 *                |   an error             |   behind the record, if it is dead already)    | kept
 *                | message abandoned      | journal abandoned, resumeWorkload, send cancel,|
 *                |                        |   finish                                       | abandonedBack
 *                | lane lost, timeout     | (waits, frozen)                                |
 *                | workload exited        | send failed, and again when reconnected        |
 *                | a step failed          | restart, unless the workload has exited        |
 *                | anything else          | error                                          |
 *  released      | message drained        | send released                                  |
 *  kept          | message drained        | send kept                                      |
 *  resumed,      | message ready or       |                                                |
 *  abandonedBack,|   abandoned            | send cancel: "it runs here, forget it"         |
 *  exited        |                        |                                                |
 *
 * Page requests, discards and acknowledgements travel on the other lanes, whose owners answer them. They decide nothing
 * here.
 *
 * detachAndKeepFrozen comes before the commit is journalled, because a tracee runs when its tracer dies. With Commit in
 * the journal and only ptrace holding the workload, kill -9 of the worker would make two of them.
 *
 * No resume before the commit waits for a journal: a full disk must not keep a workload frozen. After Abandoned the
 * record comes first (a restart must not freeze a running workload again), but the resume does not depend on it. If it
 * fails the workload is resumed all the same, and only the acknowledgement (`cancel`) is withheld.
 *
 * `kept`: the workload runs on the destination, but the destination could not prove that its memory is the original's.
 * The original stays as it is, frozen in its cgroup, for an operator to inspect and to kill. No worker resumes or kills
 * it any more.
 */

export const SOURCE_STATES = [
  'preparing',
  'precopy',
  'freezing',
  'dumping',
  'awaitingReady',
  'committed',
  'serving',
  'released',
  'kept',
  'resumed',
  'abandonedBack',
  'exited',
] as const
export type SourceStateName = (typeof SOURCE_STATES)[number]

export interface SourceState {
  readonly name: SourceStateName
  readonly mode: Mode
  /** Own preparation finished; with `connected`, Begin has been sent. */
  readonly prepared: boolean
  readonly connected: boolean
  /** The frozen original died after the commit (SIGKILL, OOM killer): nothing here can run any more. */
  readonly originalGone: boolean
  /** abandonedBack: the record is in the journal, so Abandoned may be acknowledged. */
  readonly journalled: boolean
  /** Why it did not succeed. */
  readonly error?: ErrorInfo
}

export type SourceStep = 'prepare' | 'precopy' | 'freeze' | 'dump' | 'serve'
export type SourceRecord =
  | { readonly type: 'commit' }
  | { readonly type: 'abandoned'; readonly reason: string }
  | { readonly type: 'released' }
  /** The original stays frozen: `error` names the pages that differ. */
  | { readonly type: 'kept'; readonly error: ErrorInfo }

export type SourceAction =
  /** Step 'prepare': listen, inspect. */
  | 'startPrepare'
  /** Step 'precopy': open the trackers, send the rounds. */
  | 'startPrecopy'
  /** Step 'freeze': stop every thread. */
  | 'freezeWorkload'
  /** Step 'dump': capture, final pagemap, final round, images. */
  | 'startDump'
  /** The cgroup freezer holds the workload instead of the tracer, which detaches. */
  | 'detachAndKeepFrozen'
  /** Step 'serve': answer page requests and push the rest; ends only by being stopped. */
  | 'startServing'
  /** Undo everything (trackers, scratch page, freezer, trace); the workload runs as if nothing had happened. */
  | 'resumeWorkload'
  | 'killOriginal'

/** Messages that belong to the running step. */
type Delivered = FrameOf<'clockRequest' | 'roundApplied' | 'progress'>

export type SourceEvent = CommonEvent<SourceStep, SourceAction, SourceRecord, ToSource>
export type SourceEffect = CommonEffect<SourceRecord, FromSource, Delivered> | { readonly type: SourceAction }
export type SourceTransition = Transition<SourceState, SourceEffect>

/** States in which they are delivered. The table above has all other legal messages. */
const DELIVERED: Partial<Record<SourceStateName, readonly Delivered['type'][]>> = {
  preparing: ['clockRequest'],
  precopy: ['roundApplied', 'clockRequest'],
  freezing: ['roundApplied', 'clockRequest'],
  dumping: ['roundApplied', 'clockRequest'],
  awaitingReady: ['roundApplied', 'clockRequest'],
  committed: ['progress', 'clockRequest'],
  serving: ['progress', 'clockRequest'],
}

const RESUME: SourceEffect = { type: 'resumeWorkload' }
const COMMIT_MESSAGE: FromSource = { type: 'commit' }

const send = (message: FromSource): SourceEffect => ({ type: 'send', message })
const error = (info: ErrorInfo): SourceEffect => ({ type: 'error', error: info })
const restart = (info: ErrorInfo): SourceEffect => ({ type: 'restart', error: info })
const to = (state: SourceState, name: SourceStateName, ...effects: SourceEffect[]): SourceTransition => ({
  state: { ...state, name },
  effects,
})
const stay = (state: SourceState, ...effects: SourceEffect[]): SourceTransition => ({ state, effects })

/** A new migration: the workload runs, nothing was touched. */
export function startSource(mode: Mode): SourceTransition {
  return to(initial(mode), 'preparing', { type: 'startPrepare' })
}

function initial(mode: Mode): SourceState {
  return {
    name: 'preparing',
    mode,
    prepared: false,
    connected: false,
    originalGone: false,
    journalled: false,
  }
}

/**
 * Resumes a migration from the journal. The first decisive record counts; records of an unknown type are ignored.
 * Without Commit the workload runs again, however far the migration had come.
 */
export function sourceStateFromJournal(
  records: readonly { readonly type: string; readonly reason?: string; readonly error?: ErrorInfo }[],
  mode: Mode = 'hybrid',
): SourceTransition {
  const base: SourceState = { ...initial(mode), prepared: true }
  if (!records.some((record) => record.type === 'commit')) {
    const cause: ErrorInfo = { code: 'INTERNAL', message: 'the worker on the source ended before the commit' }
    return to({ ...base, error: cause }, 'resumed', RESUME, {
      type: 'finish',
      outcome: 'resumed',
      error: cause,
    })
  }
  const decision = records.find(({ type }) => ['released', 'kept', 'abandoned'].includes(type))
  if (decision?.type === 'released') {
    return to(base, 'released', { type: 'killOriginal' }, { type: 'finish', outcome: 'migrated' })
  }
  if (decision?.type === 'kept') {
    const cause = decision.error ?? UNPROVEN
    return to({ ...base, error: cause }, 'kept', finishKept(cause))
  }
  if (decision?.type === 'abandoned') {
    const cause: ErrorInfo = { code: 'REMOTE', message: decision.reason ?? 'the destination gave it up' }
    return to({ ...base, journalled: true, error: cause }, 'abandonedBack', RESUME, {
      type: 'finish',
      outcome: 'abandoned',
      error: cause,
    })
  }
  return to(base, 'committed', { type: 'detachAndKeepFrozen' }, { type: 'startServing' })
}

export function sourceWorkloadAt(state: SourceState): WorkloadAt {
  switch (state.name) {
    case 'preparing':
    case 'precopy':
    case 'resumed':
    case 'abandonedBack':
      return 'running-on-source'
    case 'freezing':
    case 'dumping':
    case 'awaitingReady':
      return 'frozen-on-source'
    case 'committed':
      return 'handed-over'
    case 'serving':
    case 'released':
    case 'kept':
      return 'running-on-destination'
    case 'exited':
      return 'exited'
  }
}

/** The destination has the whole dump, and the original has been neither resumed nor killed. */
export function isFrozenForGood(state: SourceState): boolean {
  return ['awaitingReady', 'committed', 'serving'].includes(state.name)
}

/** Nothing more is expected. The machine still answers a peer that missed the last message. */
export function isSourceFinal(state: SourceState): boolean {
  return ['released', 'kept', 'resumed', 'abandonedBack', 'exited'].includes(state.name)
}

export function stepSource(state: SourceState, event: SourceEvent): SourceTransition {
  if (event.type === 'message' && isDelivered(event.message, state)) {
    return stay(state, { type: 'deliver', message: event.message })
  }
  switch (state.name) {
    case 'committed':
    case 'serving':
      return afterCommit(state, event)
    case 'released':
    case 'kept':
    case 'resumed':
    case 'abandonedBack':
    case 'exited':
      return atTheEnd(state, event)
    default:
      return expected(state, event) ?? beforeCommit(state, event)
  }
}

/** The normal path, up to the commit; undefined for every other event. */
function expected(state: SourceState, event: SourceEvent): SourceTransition | undefined {
  switch (state.name) {
    case 'preparing':
      if (event.type === 'stepDone' && event.step === 'prepare' && !state.prepared) {
        return begin({ ...state, prepared: true })
      }
      if (event.type === 'connected' && !state.connected) return begin({ ...state, connected: true })
      if (isMessage(event, 'prepared') && state.prepared && state.connected) {
        if (state.mode === 'postcopy') return to(state, 'freezing', { type: 'freezeWorkload' })
        return to(state, 'precopy', { type: 'startPrecopy' })
      }
      return undefined
    case 'precopy':
      if (!isDone(event, 'precopy')) return undefined
      return to(state, 'freezing', { type: 'freezeWorkload' })
    case 'freezing':
      if (!isDone(event, 'freeze')) return undefined
      return to(state, 'dumping', { type: 'startDump' })
    case 'dumping':
      // DumpEnd goes first: the destination restores while the freezer takes hold here.
      if (!isDone(event, 'dump')) return undefined
      return to(state, 'awaitingReady', send({ type: 'dumpEnd' }), { type: 'detachAndKeepFrozen' })
    case 'awaitingReady':
      if (!isMessage(event, 'ready')) return undefined
      return to(state, 'committed', { type: 'journal', record: { type: 'commit' } }, send(COMMIT_MESSAGE), {
        type: 'startServing',
      })
    default:
      return undefined
  }
}

/** Begin needs both: our own preparation and every lane. They finish in any order. */
function begin(state: SourceState): SourceTransition {
  return state.prepared && state.connected ? stay(state, send({ type: 'begin' })) : stay(state)
}

/** Any other event before the commit ends the migration. The workload runs here, or has ended here. */
function beforeCommit(state: SourceState, event: SourceEvent): SourceTransition {
  switch (event.type) {
    case 'workloadExited': {
      const cause: ErrorInfo = {
        code: 'WORKLOAD_EXITED',
        message: `the workload ${exitText(event.exit)} during the migration`,
      }
      return to({ ...state, error: cause }, 'exited', send({ type: 'cancel', error: cause }), {
        type: 'finish',
        outcome: 'exited',
        error: cause,
      })
    }
    case 'cancel':
      return abort(state, CANCELLED)
    case 'timeout':
      return abort(state, timeoutError(event.what))
    case 'laneLost':
      return abort(state, laneError(event.lane))
    case 'peerUnknown':
      return abort(state, PEER_UNKNOWN)
    case 'stepFailed':
    case 'effectFailed':
    case 'journalFailed':
      return abort(state, event.error)
    case 'message':
      switch (event.message.type) {
        case 'failed':
        case 'cancel':
        case 'abandoned':
          return abort(state, peerError('destination', event.message))
      }
      break
  }
  const cause = unexpected(state, event)
  const { state: next, effects } = abort(state, cause)
  return { state: next, effects: [error(cause), ...effects] }
}

function abort(state: SourceState, cause: ErrorInfo): SourceTransition {
  return to({ ...state, error: cause }, 'resumed', RESUME, send({ type: 'cancel', error: cause }), {
    type: 'finish',
    outcome: 'resumed',
    error: cause,
  })
}

/** committed, serving: the workload is frozen, and only the destination decides. */
function afterCommit(state: SourceState, event: SourceEvent): SourceTransition {
  switch (event.type) {
    case 'message':
      return handedOver(state, event.message)
    case 'journalFailed':
      // Commit was not sent yet, because it comes after the record. If a restart cannot read the record either, the
      // destination will never receive Commit: this is still before the commit. If it can, reading it decides.
      if (event.record.type === 'commit' && event.written === 'no') return abort(state, event.error)
      return stay(state, restart(event.error))
    case 'effectFailed':
    case 'stepFailed':
      // A successor could serve no better than we do.
      if (state.originalGone) return stay(state, error(event.error))
      return stay(state, error(event.error), restart(event.error))
    case 'cancel':
      return stay(state, error(TOO_LATE))
    case 'peerUnknown':
      return stay(state, error(PEER_UNKNOWN))
    case 'workloadExited': {
      const cause: ErrorInfo = {
        code: 'WORKLOAD_EXITED',
        message: `the frozen original ${exitText(event.exit)}: pages not yet sent are lost`,
      }
      const next = { ...state, originalGone: true, error: cause }
      return stay(next, error(cause), send({ type: 'failed', error: cause }))
    }
    case 'reconnected':
      // The original died while no destination was connected.
      if (event.lane !== 'control' || !state.originalGone || state.error === undefined) return stay(state)
      return stay(state, send({ type: 'failed', error: state.error }))
    case 'laneLost':
    case 'connected':
    case 'timeout':
      return stay(state)
    case 'stepDone':
      return event.step === 'serve' ? stay(state) : stay(state, error(unexpected(state, event)))
    default:
      return stay(state, error(unexpected(state, event)))
  }
}

function handedOver(state: SourceState, message: ToSource): SourceTransition {
  switch (message.type) {
    case 'ready':
      // Ready was repeated after a reconnect: our Commit was lost.
      return stay(state, send(COMMIT_MESSAGE))
    case 'running':
      return to(state, 'serving')
    case 'drained':
      if (message.error !== undefined) return keep(state, message.error)
      return to(
        state,
        'released',
        { type: 'journal', record: { type: 'released' } },
        { type: 'killOriginal' },
        send({ type: 'released' }),
        { type: 'finish', outcome: 'migrated' },
      )
    case 'abandoned': {
      const cause: ErrorInfo = {
        code: 'REMOTE',
        message: `destination: gave the migration up: ${message.reason || 'no reason given'}`,
      }
      const record: SourceEffect = {
        type: 'journal',
        record: { type: 'abandoned', reason: cause.message },
      }
      const next = { ...state, journalled: true, error: cause }
      const heard = send({ type: 'cancel', error: cause })
      if (state.originalGone) {
        return to(next, 'exited', record, heard, { type: 'finish', outcome: 'exited', error: cause })
      }
      return to(next, 'abandonedBack', record, RESUME, heard, {
        type: 'finish',
        outcome: 'abandoned',
        error: cause,
      })
    }
    case 'failed':
    case 'cancel':
      // This is not Abandoned: the workload may be running there.
      return stay(state, error(peerError('destination', message)))
    case 'roundApplied':
    case 'prepared':
      // A late message from before the commit.
      return stay(state)
    default:
      return stay(state, error(unexpected(state, { type: 'message', message })))
  }
}

/** The destination runs the workload and cannot prove its memory. A dead original leaves only its cgroup to remove. */
function keep(state: SourceState, cause: ErrorInfo): SourceTransition {
  return to(
    { ...state, error: cause },
    'kept',
    { type: 'journal', record: { type: 'kept', error: cause } },
    ...(state.originalGone ? [{ type: 'killOriginal' } as const] : []),
    send({ type: 'kept' }),
    finishKept(cause),
  )
}

function finishKept(cause: ErrorInfo): SourceEffect {
  return { type: 'finish', outcome: 'kept', error: cause }
}

/** released, kept, resumed, abandonedBack, exited. */
function atTheEnd(state: SourceState, event: SourceEvent): SourceTransition {
  switch (event.type) {
    case 'message':
      return lastWords(state, event.message)
    case 'journalFailed':
      if (state.name === 'abandonedBack') {
        // The destination has barred its Commit for good. Running here is safe, but we must not forget it.
        return stay({ ...state, journalled: false }, error(event.error), RESUME, {
          type: 'finish',
          outcome: 'abandoned',
          error: state.error,
        })
      }
      return stay({ ...state, journalled: false }, restart(event.error))
    case 'effectFailed': {
      // Neither a frozen workload nor a doomed original may stay behind: the next worker tries again.
      const farewell =
        state.name === 'resumed' ? [send({ type: 'cancel', error: state.error ?? event.error })] : []
      return stay(state, error(event.error), ...farewell, restart(event.error))
    }
    default:
      return stay(state)
  }
}

function lastWords(state: SourceState, message: ToSource): SourceTransition {
  if (state.name === 'released' || state.name === 'kept') {
    if (message.type === 'drained') return stay(state, send({ type: state.name }))
    if (message.type === 'abandoned') {
      return stay(state, error(unexpected(state, { type: 'message', message })))
    }
    return stay(state)
  }
  if (message.type === 'ready' || message.type === 'abandoned') {
    const heard = send({ type: 'cancel', error: state.error ?? UNEXPLAINED })
    if (state.name !== 'abandonedBack' || state.journalled) return stay(state, heard)
    // Once the destination has received it, it forgets. A restart here must not read a Commit without Abandoned then.
    const reason = state.error?.message ?? ''
    return stay(
      { ...state, journalled: true },
      { type: 'journal', record: { type: 'abandoned', reason } },
      heard,
    )
  }
  if (message.type === 'running' || message.type === 'drained') {
    return stay(state, error(unexpected(state, { type: 'message', message })))
  }
  return stay(state)
}

function isDelivered(message: ToSource, { name }: SourceState): message is Delivered {
  return DELIVERED[name]?.some((type) => type === message.type) === true
}

function isMessage(event: SourceEvent, type: ToSource['type']): boolean {
  return event.type === 'message' && event.message.type === type
}

function isDone(event: SourceEvent, step: SourceStep): boolean {
  return event.type === 'stepDone' && event.step === step
}

function unexpected(state: SourceState, event: SourceEvent): ErrorInfo {
  return {
    code: event.type === 'message' ? 'PROTOCOL' : 'INTERNAL',
    message: `${eventText(event)} is not expected by the source in state ${state.name}`,
  }
}
