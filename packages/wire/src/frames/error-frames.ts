import { type ErrorInfo, isErrorCode } from '@pageferry/base'
import { parseObject } from './fields.js'
import type { FrameOf } from './frames.js'
import { maxJsonChars, maxMessageChars } from './limits.js'

/** The frames that carry an error: a lane is refused, the migration must be given up, or it has failed. */
export type ErrorFrameType = 'cancel' | 'failed' | 'refusal'

/** Turns an error into a frame. Never throws: text that is too long is cut, or replaced by a note. */
export function errorToFrame(type: ErrorFrameType, info: ErrorInfo): FrameOf<ErrorFrameType> {
  return {
    type,
    code: info.code,
    message: cut(info.message, maxMessageChars),
    detailsJson: toJsonText(info.details),
  }
}

/**
 * The error in a frame. A code of a later version becomes REMOTE, with the code in `details.remoteCode`. Add the role
 * with `new RemoteError(role, info)`.
 */
export function frameToError(frame: FrameOf<ErrorFrameType>): ErrorInfo {
  const details = fromJsonText(frame.detailsJson)
  if (isErrorCode(frame.code)) return { code: frame.code, message: frame.message, details }
  return { code: 'REMOTE', message: frame.message, details: { ...details, remoteCode: frame.code } }
}

/** Encodes an error within another frame; '' for none. */
export function errorToJson(info: ErrorInfo | undefined): string {
  if (info === undefined) return ''
  const { code, message, details } = info
  const bare = { code, message: cut(message, maxMessageChars) }
  const text = JSON.stringify({ ...bare, details })
  return text.length <= maxJsonChars ? text : JSON.stringify(bare)
}

/** Decodes it. Any text of the peer becomes an error with a message, or none. */
export function errorFromJson(text: string): ErrorInfo | undefined {
  if (text === '') return undefined
  const { code, message, details } = fromJsonText(text)
  return {
    code: isErrorCode(code) ? code : 'REMOTE',
    message: typeof message === 'string' ? cut(message, maxMessageChars) : 'no reason was given',
    ...(typeof details === 'object' && details !== null && { details: details as Record<string, unknown> }),
  }
}

/**
 * Encodes an object as the text of a `...Json` field; bigints become decimal strings. An object that cannot be JSON or
 * is too long becomes {"omitted": reason}: a report must not fail because of its content.
 */
export function toJsonText(value: object | undefined): string {
  if (value === undefined) return ''
  try {
    const json = JSON.stringify(value, (_, member) => (typeof member === 'bigint' ? String(member) : member))
    if (parseObject(json) === undefined) return JSON.stringify({ omitted: 'not an object' })
    if (json.length > maxJsonChars) return JSON.stringify({ omitted: `${json.length} characters` })
    return json
  } catch (error) {
    return JSON.stringify({ omitted: cut(String(error), maxMessageChars) })
  }
}

/** The object in a `...Json` field of a decoded frame. */
export function fromJsonText(text: string): Record<string, unknown> {
  return parseObject(text) ?? {}
}

function cut(text: string, maxChars: number): string {
  return text.length <= maxChars ? text : `${text.slice(0, maxChars - 1)}…`
}
