import type { ErrorInfo } from '@pageferry/base'
import type { Frame, FrameOf, FrameOn } from '@pageferry/wire'

/*
 * Messages of the control lane as the machines see them. Types only: the machines load no codec. Which frames there are,
 * and who may send them on which lane, is the wire's to say; FrameOn reads it from there.
 */

/** A peer's, or our own, error. The codec's text is read before (frameToError) and made after the machine. */
export interface ErrorMessage {
  readonly type: 'cancel' | 'failed'
  readonly error: ErrorInfo
}

/** Nothing is needed from the source any more. `error`: the proof of the memory (--verify) failed. */
export interface DrainedMessage {
  readonly type: 'drained'
  readonly error?: ErrorInfo
}

/** Of the handshake. They become `connected`, `reconnected`, `peerUnknown` or a failed `connect` step. */
type Handshake = FrameOf<'hello' | 'welcome' | 'refusal'>

type Received<F extends Frame> = Exclude<F, Handshake | { type: ErrorMessage['type'] }> | ErrorMessage

/** What a round consists of. The destination's worker takes it past the machine: see destination-machine.ts. */
export type RoundFrame = FrameOf<'image' | 'roundBegin' | 'roundEnd'>

/** What the source's machine can meet. */
export type ToSource =
  | Exclude<Received<FrameOn<'control', 'to-source'>>, FrameOf<'drained' | 'hashRequest'>>
  | DrainedMessage
/** What the destination's machine can meet. */
export type ToDestination = Exclude<
  Received<FrameOn<'control', 'to-destination'>>,
  RoundFrame | FrameOf<'pageHashes'>
>

/** What the source's machine asks to be sent. The driver adds what only it knows: hosts, clocks, figures. */
export type FromSource =
  | { readonly type: Extract<ToDestination['type'], 'begin' | 'dumpEnd' | 'commit' | 'released' | 'kept'> }
  | ErrorMessage

/** What the destination's machine asks to be sent. */
export type FromDestination =
  | { readonly type: Extract<ToSource['type'], 'prepared' | 'ready' | 'running'> }
  | DrainedMessage
  | { readonly type: 'abandoned'; readonly reason: string }
  | ErrorMessage
