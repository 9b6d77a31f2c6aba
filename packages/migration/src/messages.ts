import type { ErrorInfo } from '@pageferry/base'
import type { Frame, FrameOf, FrameOn } from '@pageferry/wire'

/*
 * Messages of the control lane as the machines see them. Types only: the machines load no codec. The wire package
 * decides which frames exist, and who may send them on which lane; FrameOn reads it from there.
 */

/** An error, the peer's or our own. Its text form is decoded before the machine (frameToError) and encoded after it. */
export interface ErrorMessage {
  readonly type: 'cancel' | 'failed'
  readonly error: ErrorInfo
}

/** The source is not needed any more. `error`: the proof of the memory (--verify) failed. */
export interface DrainedMessage {
  readonly type: 'drained'
  readonly error?: ErrorInfo
}

/** Frames of the handshake. They become `connected`, `reconnected`, `peerUnknown` or a failed `connect` step. */
type Handshake = FrameOf<'hello' | 'welcome' | 'refusal'>

type Received<F extends Frame> = Exclude<F, Handshake | { type: ErrorMessage['type'] }> | ErrorMessage

/** The frames of a round. The destination's worker takes them past the machine: see destination-machine.ts. */
export type RoundFrame = FrameOf<'image' | 'ghost' | 'ghostData' | 'ghostGone' | 'roundBegin' | 'roundEnd'>

/** Messages for the source's machine. */
export type ToSource =
  | Exclude<Received<FrameOn<'control', 'to-source'>>, FrameOf<'drained' | 'hashRequest'>>
  | DrainedMessage
/** Messages for the destination's machine. */
export type ToDestination = Exclude<
  Received<FrameOn<'control', 'to-destination'>>,
  RoundFrame | FrameOf<'pageHashes'>
>

/** Messages from the source's machine. The driver adds the parts that only it knows: hosts, clocks, figures. */
export type FromSource =
  | { readonly type: Extract<ToDestination['type'], 'begin' | 'dumpEnd' | 'commit' | 'released' | 'kept'> }
  | ErrorMessage

/** Messages from the destination's machine. */
export type FromDestination =
  | { readonly type: Extract<ToSource['type'], 'prepared' | 'ready' | 'running'> }
  | DrainedMessage
  | { readonly type: 'abandoned'; readonly reason: string }
  | ErrorMessage
