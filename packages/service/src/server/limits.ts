import { KiB, MiB } from '@pageferry/base'

/**
 * Every limit of a service in one place. Tests pass shorter times through `ServiceOptions.limits`. No other code
 * changes them.
 */
export interface Limits {
  /** Running migrations per service. Each is a Node process of about 60 MiB plus its page buffers. */
  maxMigrations: number
  /**
   * Workers that wait for a migration, loaded and rehearsed. One is enough for migrations that come one by one: its
   * replacement starts when they have ended. 0: none.
   */
  spareWorkers: number
  /** Resident memory of a spare worker after its rehearsal. A worker that uses more is not kept. */
  spareMemoryBytes: number
  /** Ended migrations whose directory and status are kept for inspection; the oldest are removed first. */
  keptMigrations: number
  /** Largest request body. A request is a few hundred bytes; paths may take 4 KiB each. */
  bodyBytes: number
  /** Preflight at 50,000 mappings took under 2 s. On two processors with a load of 19, a worker was not ready after 30 s. */
  listeningTimeoutMs: number
  /** How long a stopping service waits for its workers to thaw and clean up their workloads. */
  undoTimeoutMs: number
  /** How long a worker may take to exit once its channel is closed, before it is killed. */
  exitTimeoutMs: number
  /** How long a worker may stay after its last message, to answer a peer that missed the outcome. */
  lingerMs: number
  /** First and longest pause before a dead worker is replaced; doubles in between. */
  minBackoffMs: number
  maxBackoffMs: number
  /** A worker that lived this long was healthy: the next death starts again at `minBackoffMs`. */
  steadyMs: number
  /** Status is written to disk at most this often while only its progress changes. */
  statusSaveMs: number
  /** Interval of comment lines on an idle event stream; well under the 60 s after which proxies give up. */
  heartbeatMs: number
  /** A client that read nothing for this long, although a status waited for it, is disconnected. */
  stalledClientMs: number
  /** Event streams open at once, over all migrations. */
  maxEventClients: number
}

export const LIMITS: Readonly<Limits> = {
  maxMigrations: 16,
  spareWorkers: 1,
  // Measured: 88 MiB on both sides. A worker with three times as much has a leak.
  spareMemoryBytes: 256 * MiB,
  keptMigrations: 100,
  bodyBytes: 64 * KiB,
  listeningTimeoutMs: 60_000,
  undoTimeoutMs: 10_000,
  exitTimeoutMs: 2_000,
  lingerMs: 60_000,
  minBackoffMs: 100,
  maxBackoffMs: 5_000,
  steadyMs: 30_000,
  statusSaveMs: 500,
  heartbeatMs: 15_000,
  stalledClientMs: 60_000,
  maxEventClients: 64,
}
