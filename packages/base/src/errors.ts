/**
 * The one table of error codes. A code is stable API: clients switch on it, tests compare it with the documentation.
 * `http` is the status of a service's answer, `exit` that of the command line (3: refused before anything was touched;
 * 4: the migration failed and the workload runs on the source).
 */
export const ERROR_CODES = {
  BAD_REQUEST: { http: 400, exit: 2, text: 'the request is malformed' },
  UNAUTHORIZED: { http: 401, exit: 2, text: 'the migration token is wrong' },
  NOT_FOUND: { http: 404, exit: 2, text: 'no such migration' },
  NO_SUCH_PROCESS: { http: 404, exit: 3, text: 'no such process' },
  NOT_PERMITTED: { http: 403, exit: 3, text: 'the kernel does not permit it' },
  REFUSED: { http: 409, exit: 3, text: 'the workload or a host does not qualify for migration' },
  CONFLICT: { http: 409, exit: 3, text: 'the workload is already being migrated' },
  UNSUPPORTED_HOST: { http: 501, exit: 3, text: 'the kernel lacks a facility that is needed' },
  PEER_UNREACHABLE: { http: 502, exit: 4, text: 'the other side cannot be reached' },
  PROTOCOL: { http: 502, exit: 4, text: 'the other side broke the protocol' },
  VERSION_MISMATCH: { http: 502, exit: 4, text: 'no common protocol version' },
  REMOTE: { http: 502, exit: 4, text: 'the other side reported an error' },
  WORKLOAD_EXITED: { http: 410, exit: 4, text: 'the workload exited during the migration' },
  WORKLOAD_CHANGED: { http: 409, exit: 4, text: 'the workload changed in a way that cannot be moved' },
  CANCELLED: { http: 409, exit: 4, text: 'the migration was cancelled' },
  TIMEOUT: { http: 504, exit: 4, text: 'a step took too long' },
  VERIFY_FAILED: { http: 500, exit: 4, text: 'memory on the destination differs from the source' },
  KERNEL: { http: 500, exit: 4, text: 'a system call failed' },
  INTERNAL: { http: 500, exit: 4, text: 'a defect in pageferry' },
} as const satisfies Record<string, { http: number; exit: number; text: string }>

export type ErrorCode = keyof typeof ERROR_CODES

/** Plain form of an error, which crosses process and network boundaries. */
export interface ErrorInfo {
  code: ErrorCode
  message: string
  details?: Record<string, unknown>
}

/** Every error that a user may see. `message` is one sentence: what, where, what to do. */
export class PageferryError extends Error {
  override readonly name: string = 'PageferryError'
  readonly code: ErrorCode
  readonly details: Record<string, unknown>

  constructor(
    code: ErrorCode,
    message: string,
    options: { cause?: unknown; details?: Record<string, unknown> } = {},
  ) {
    super(message, { cause: options.cause })
    this.code = code
    this.details = options.details ?? {}
  }

  toInfo(): ErrorInfo {
    return { code: this.code, message: this.message, details: this.details }
  }

  /** Restores an error that crossed a boundary within one side. An error of the peer becomes a RemoteError. */
  static fromInfo({ code, message, details }: ErrorInfo): PageferryError {
    return new PageferryError(code, message, { details })
  }
}

/** An error of the peer, or reported by it. It keeps the role, so that a log never blames the wrong machine. */
export class RemoteError extends PageferryError {
  override readonly name = 'RemoteError'
  readonly role: 'source' | 'destination'

  constructor(role: 'source' | 'destination', info: ErrorInfo) {
    super(info.code, `${role}: ${info.message}`, { details: info.details })
    this.role = role
  }
}

/** Shape of the errors that the addon throws: a failed system call with its errno. */
export interface KernelErrorLike extends Error {
  code: string
  errno: number
  syscall: string
  pid?: number
}

export function isKernelError(error: unknown, ...codes: string[]): error is KernelErrorLike {
  if (!(error instanceof Error)) return false
  const e = error as Partial<KernelErrorLike>
  return (
    typeof e.syscall === 'string' &&
    typeof e.code === 'string' &&
    (codes.length === 0 || codes.includes(e.code))
  )
}

export function isErrorCode(code: unknown): code is ErrorCode {
  return typeof code === 'string' && Object.hasOwn(ERROR_CODES, code)
}

/** Converts any thrown value to the plain form. The place of the failure is kept. */
export function toErrorInfo(error: unknown): ErrorInfo {
  if (error instanceof PageferryError) return error.toInfo()
  if (isKernelError(error)) {
    const where = error.pid === undefined ? '' : ` (pid ${error.pid})`
    return {
      code: error.code === 'EPERM' || error.code === 'EACCES' ? 'NOT_PERMITTED' : 'KERNEL',
      message: `${error.syscall} failed with ${error.code}${where}`,
      details: { syscall: error.syscall, errno: error.code, pid: error.pid },
    }
  }
  const message = error instanceof Error ? error.message : String(error)
  return { code: 'INTERNAL', message, details: error instanceof Error ? { stack: error.stack } : {} }
}
