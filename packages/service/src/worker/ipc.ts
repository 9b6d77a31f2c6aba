import type { ErrorInfo } from '@pageferry/base'
import type { Role } from '../api/roles.js'
import type { Progress, Workload } from '../api/schemas.js'

/**
 * Messages between a service and the worker of one migration, JSON over the channel of fork().
 *
 *   service                                worker
 *     │── rehearse ─────────────────────────▶│  only to a spare worker, long before there is a migration
 *     │◀───────────── rehearsed | unfit ─────│
 *     │                                      │
 *     │── start | takeover {spec} ──────────▶│  exactly one of them; cuts a rehearsal short
 *     │◀───────────── listening (source) ────│  preflight has passed, the data port is open
 *     │◀───────────── status, record … ──────│
 *     │── cancel ───────────────────────────▶│  undo if uncommitted; ignored after the commit
 *     │◀───────────── finished | failed ─────│  the last message: the outcome stands
 *     │                                      │  may stay a little to answer its peer, then exits
 *
 * A worker exits whenever the channel closes, without undoing anything. Its successor, told `takeover`, reads the
 * journal and `spec.records`. It decides whether to undo (before the commit) or to continue.
 */

/** Everything that a worker needs to begin, or to continue the work of one that died. Kept in spec.json. */
export interface WorkerSpec<Request = unknown> {
  id: string
  role: Role
  /** Shared secret of the two workers of a migration; the empty string once the migration has ended. */
  token: string
  /** Address of the service; the source's data port is opened on the same one. */
  host: string
  /** This migration's own directory, mode 0700. */
  stateDir: string
  /** The body of the request, without `token` and `id`. */
  request: Request
  /** Records that workers asked the service to keep, oldest first. The service does not read them. */
  records: Record<string, unknown>[]
  createdAt: string
}

export type ServiceMessage<Request = unknown> =
  /** `directory` belongs to the spare worker, and is removed when the rehearsal is over. */
  | { type: 'rehearse'; directory: string }
  | { type: 'start'; spec: WorkerSpec<Request> }
  | { type: 'takeover'; spec: WorkerSpec<Request> }
  | { type: 'cancel' }
  /** The record with this number is on disk. */
  | { type: 'recorded'; seq: number }

export type WorkerMessage =
  | { type: 'rehearsed' }
  /** This host cannot run a migration. */
  | { type: 'unfit'; error: ErrorInfo }
  | { type: 'listening'; dataUrl: string; workload: Workload }
  | {
      type: 'status'
      state: string
      workload?: Workload
      progress?: Progress
      report?: Record<string, unknown>
      /** From the commit on: the migration can no longer be cancelled. Sticky. */
      committed?: boolean
    }
  | { type: 'finished'; report: Record<string, unknown>; workload: Workload }
  | { type: 'failed'; error: ErrorInfo; workload?: Workload; report?: Record<string, unknown> }
  /** With `seq` the service answers `recorded` as soon as the record would survive its death. */
  | { type: 'record'; record: Record<string, unknown>; seq?: number }
