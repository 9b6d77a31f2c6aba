import { type ErrorCode, PageferryError } from '@pageferry/base'

/**
 * Faults of a peer, each with the WebSocket close code for its lane (RFC 6455 leaves 4000-4999 to applications).
 * Numbers are frozen once released.
 */
export const WIRE_FAULTS = {
  MALFORMED: { closeCode: 4100, text: 'the message is not a frame' },
  TOO_LARGE: { closeCode: 4101, text: 'the frame or one of its lists exceeds a limit' },
  UNKNOWN_FRAME: { closeCode: 4102, text: 'the frame has no body that this version knows' },
  WRONG_LANE: { closeCode: 4103, text: 'the frame does not belong on this lane or in this direction' },
  BAD_PAYLOAD: { closeCode: 4104, text: 'the payload is not what the header says' },
  BAD_RUNS: { closeCode: 4105, text: 'the page runs are empty, unordered, overlapping or out of range' },
  BAD_VALUE: { closeCode: 4106, text: 'a field is missing or has a value that it cannot have' },
  OUT_OF_ORDER: { closeCode: 4107, text: 'the frame is not expected in this state' },
  OUTSIDE_PROCESS: { closeCode: 4108, text: 'pages outside the dumped process' },
  WINDOW_EXCEEDED: { closeCode: 4109, text: 'more in flight than the window allows' },
  HELLO_TIMEOUT: { closeCode: 4110, text: 'no Hello in time' },
  LANE_TAKEN: { closeCode: 4111, text: 'the lane is connected already, or there are not that many' },
} as const satisfies Record<string, { closeCode: number; text: string }>

export type WireFault = keyof typeof WIRE_FAULTS

/** Close code for every error that ends a lane without being a fault of the protocol. */
export const ERROR_CLOSE_CODES = {
  BAD_REQUEST: 4000,
  UNAUTHORIZED: 4001,
  NOT_FOUND: 4002,
  NO_SUCH_PROCESS: 4003,
  NOT_PERMITTED: 4004,
  REFUSED: 4005,
  CONFLICT: 4006,
  UNSUPPORTED_HOST: 4007,
  PEER_UNREACHABLE: 4008,
  PROTOCOL: 4009,
  VERSION_MISMATCH: 4010,
  REMOTE: 4011,
  WORKLOAD_EXITED: 4012,
  WORKLOAD_CHANGED: 4013,
  CANCELLED: 4014,
  TIMEOUT: 4015,
  VERIFY_FAILED: 4016,
  KERNEL: 4017,
  INTERNAL: 4018,
} as const satisfies Record<ErrorCode, number>

/** Closes a lane that is no longer needed. RFC 6455 "normal closure"; it never means that a migration succeeded. */
export const closeNormal = 1000

/** The peer broke the protocol. The lane is closed with `closeCode`; the frame had no effect. */
export class WireError extends PageferryError {
  override readonly name = 'WireError'
  readonly fault: WireFault
  readonly closeCode: number

  constructor(fault: WireFault, message: string, options: { cause?: unknown } = {}) {
    const { closeCode } = WIRE_FAULTS[fault]
    super('PROTOCOL', message, { cause: options.cause, details: { fault, closeCode } })
    this.fault = fault
    this.closeCode = closeCode
  }
}

/** The close code for an error that ended a lane. */
export function closeCodeOf(error: unknown): number {
  if (error instanceof WireError) return error.closeCode
  return ERROR_CLOSE_CODES[error instanceof PageferryError ? error.code : 'INTERNAL']
}

/** Bytes of a close reason: a control frame holds 125, two of them are the code (RFC 6455, 5.5). */
const maxCloseReasonBytes = 123

/** Cuts `message` to the room in a close frame, between characters. */
export function closeReason(message: string): string {
  const bytes = new Uint8Array(maxCloseReasonBytes)
  const { read } = new TextEncoder().encodeInto(message, bytes)
  return message.slice(0, read)
}

/** Meaning of a received close code, for logs and messages; undefined for codes that are not ours. */
export function describeCloseCode(
  closeCode: number,
): { name: WireFault | ErrorCode; text?: string } | undefined {
  for (const [name, fault] of Object.entries(WIRE_FAULTS)) {
    if (fault.closeCode === closeCode) return { name: name as WireFault, text: fault.text }
  }
  for (const [name, code] of Object.entries(ERROR_CLOSE_CODES)) {
    if (code === closeCode) return { name: name as ErrorCode }
  }
  return undefined
}
