import type { ErrorInfo } from '@pageferry/base'

/** Lanes of a migration; the machines act on the loss of each. */
export type Lane = 'control' | 'fault' | 'bulk'

/**
 * Messages of the control lane as the machines see them: the field names of `Frame.body` in
 * proto/wire/frames.proto. Hello, Welcome and Refusal never get here (they become `connected`, `reconnected`,
 * `peerUnknown` or a failed `connect` step); page requests, replies and batches live on the other lanes.
 */
export const MESSAGE_TYPES = [
  'begin',
  'prepared',
  'image',
  'roundBegin',
  'roundEnd',
  'roundApplied',
  'dumpEnd',
  'ready',
  'commit',
  'running',
  'progress',
  'drained',
  'released',
  'kept',
  'abandoned',
  'cancel',
  'failed',
  'clockRequest',
  'clockReply',
  'discard',
] as const

export type MessageType = (typeof MESSAGE_TYPES)[number]

/**
 * One message. The machines read `type`, `error` (cancel, failed; drained: the proof failed) and `reason` (abandoned). `frame` is the
 * driver's: it travels unread into a `deliver` effect, and is added by the driver to what it sends.
 */
export interface Message {
  readonly type: MessageType
  readonly error?: ErrorInfo
  readonly reason?: string
  readonly frame?: unknown
}
