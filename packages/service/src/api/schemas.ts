import { ERROR_CODES, type ErrorCode } from '@pageferry/base'
import { type Static, Type } from 'typebox'
import { ROLES, type Role } from './roles.js'
import { DESTINATION_SETTINGS, SOURCE_SETTINGS } from './settings.js'

/**
 * The message shapes of the HTTP API, under /v1. Both services and the client use these, so they cannot disagree.
 *
 *   POST   /migrations              request below -> 201 CreatedMigration (source), Status (destination)
 *   GET    /migrations              -> { migrations: Status[] }, oldest first
 *   GET    /migrations/:id          -> Status
 *   DELETE /migrations/:id          -> 202 Status; the cancellation itself shows in later statuses
 *   GET    /migrations/:id/events   -> text/event-stream of Status, ends after a final state
 *   GET    /healthz (no /v1)        -> Health
 *
 * An error is an ErrorBody with the HTTP status of its code in ERROR_CODES.
 */

/**
 * States that only the service itself gives to a migration: the first until its worker sends a status, the others after
 * the worker has sent `finished` or `failed`. The worker sets all states in between.
 */
export const STARTING = 'starting'
export const FINAL_STATES = ['finished', 'failed', 'cancelled'] as const

const strict = { additionalProperties: false }

export const IdSchema = Type.String({ pattern: '^[0-9a-f]{16}$' })
/** 32 random bytes in base64url. */
export const TokenSchema = Type.String({ pattern: '^[A-Za-z0-9_-]{43}$' })

export const DumpRequestSchema = Type.Object(
  {
    /** Upper bound: PID_MAX_LIMIT of 64-bit kernels. */
    pid: Type.Integer({ minimum: 1, maximum: 4_194_304 }),
    ...SOURCE_SETTINGS,
    /** For tests: a fault of migration/faults.ts, "name" or "name:seed". */
    injectFault: Type.Optional(Type.String({ minLength: 1, maxLength: 100 })),
  },
  strict,
)
/** The request as the worker gets it: the service has filled in the defaults. */
export type DumpRequest = Static<typeof DumpRequestSchema>
/** The request as a client sends it. */
export type DumpRequestBody = Partial<DumpRequest> & Pick<DumpRequest, 'pid'>

export const RestoreRequestSchema = Type.Object(
  {
    id: IdSchema,
    token: TokenSchema,
    source: Type.String({ pattern: '^ws://[^/?#@\\s]+/?$', maxLength: 300 }),
    ...DESTINATION_SETTINGS,
    injectFault: Type.Optional(Type.String({ minLength: 1, maxLength: 100 })),
  },
  strict,
)
export type RestoreRequest = Static<typeof RestoreRequestSchema>

export const ErrorBodySchema = Type.Object({
  code: Type.Enum(Object.keys(ERROR_CODES) as [ErrorCode, ...ErrorCode[]]),
  message: Type.String(),
  details: Type.Optional(Type.Record(Type.String(), Type.Unknown())),
})

export const WorkloadExitSchema = Type.Object({
  /** unknown: its keeper is gone too, for example because the host was restarted. */
  kind: Type.Enum(['exited', 'signaled', 'unknown']),
  /** Exit status, or the number of the signal. */
  value: Type.Optional(Type.Integer()),
})
export type WorkloadExit = Static<typeof WorkloadExitSchema>

export const WorkloadSchema = Type.Object({
  /** Pid as the service's host sees it. */
  pid: Type.Integer(),
  comm: Type.String(),
  threads: Type.Integer(),
  where: Type.Enum(['running', 'frozen', 'gone', 'unknown']),
  exit: Type.Optional(WorkloadExitSchema),
})
export type Workload = Static<typeof WorkloadSchema>

export const ProgressSchema = Type.Object({
  phase: Type.String(),
  round: Type.Optional(Type.Number()),
  pages: Type.Optional(Type.Number()),
  totalPages: Type.Optional(Type.Number()),
  bytes: Type.Optional(Type.Number()),
  pendingPages: Type.Optional(Type.Number()),
})
export type Progress = Static<typeof ProgressSchema>

export const StatusSchema = Type.Object({
  id: IdSchema,
  role: Type.Enum([...ROLES]),
  state: Type.String(),
  /** null until the worker has seen the workload. */
  workload: Type.Union([WorkloadSchema, Type.Null()]),
  progress: Type.Optional(ProgressSchema),
  report: Type.Optional(Type.Record(Type.String(), Type.Unknown())),
  error: Type.Optional(ErrorBodySchema),
  /** ISO 8601, UTC. */
  createdAt: Type.String(),
  endedAt: Type.Optional(Type.String()),
})
export type Status = Static<typeof StatusSchema>

/** The source's answer to a creation; the only message that ever carries the token. */
export type CreatedMigration = Status & { token: string; dataUrl: string }

export interface Health {
  role: Role
  version: string
  ok: boolean
}

export function isFinal(status: Pick<Status, 'state'>): boolean {
  return (FINAL_STATES as readonly string[]).includes(status.state)
}
