import { PageferryError } from '@pageferry/base'
import {
  type DestinationReport,
  exitText,
  type MigrationReport,
  mergeReports,
  type SourceReport,
} from '@pageferry/migration'
import { SERVICE_NAMES } from '../api/roles.js'
import type { MigrationResult, Sides } from './migrate.js'

/** Sentences for the user about a migration that has ended. */

/** The last sentence of every migration: which machine has the workload, and in what condition. */
export function whereabouts({ source, destination }: Sides): string {
  // A destination that did not get that far reports a workload without a name.
  const workload = [destination?.workload, source?.workload].find((known) => known != null && known.pid !== 0)
  const name = workload == null ? 'The process' : `Process ${workload.pid} (${workload.comm})`
  const there = destination?.workload
  if (there?.exit !== undefined) {
    return `${name} came to the destination and ${exitText(there.exit)} there.`
  }
  if (there?.where === 'running') return `${name} runs on the destination.`
  const here = source?.workload
  if (here?.where === 'running') return `${name} runs on the source, as before.`
  if (here?.where === 'frozen') {
    return `${name} is frozen on the source and handed over; the services finish the migration by themselves.`
  }
  if (here?.where === 'gone') return `${name} is gone from the source: it ended there during the migration.`
  return `${name}: neither side has said where it is; "pageferry migrate" has stopped watching the ${SERVICE_NAMES.source} and the ${SERVICE_NAMES.destination}.`
}

/**
 * The error of a migration that did not succeed. Both sides have one. One is the cause; the other is its effect: a lost
 * connection, a cancellation or an error at second hand.
 */
export function failureOf({ source, destination }: Sides): PageferryError {
  const candidates = [
    { error: source?.error, secondHand: ['REMOTE', 'PEER_UNREACHABLE'], peer: 'destination: ' },
    { error: destination?.error, secondHand: ['REMOTE', 'PEER_UNREACHABLE', 'CANCELLED'], peer: 'source: ' },
  ]
  const cause = candidates.find(
    ({ error, secondHand, peer }) =>
      error !== undefined && !secondHand.includes(error.code) && !error.message.startsWith(peer),
  )
  const info = cause?.error ??
    source?.error ??
    destination?.error ?? { code: 'INTERNAL' as const, message: 'the migration ended without a reason' }
  return new PageferryError(info.code, info.message, { details: info.details })
}

/**
 * Merges the reports of both sides. A migration that failed early has measured little; missing values are zero. null
 * when the source never reported anything.
 */
export function reportOf({ id, source, destination }: MigrationResult): MigrationReport | null {
  const measured = source?.report as Partial<SourceReport> | undefined
  if (source === undefined || measured === undefined) return null
  const { pid = 0, comm = '', threads = 0 } = source.workload ?? {}
  const complete: SourceReport = {
    ...{ id, mode: 'hybrid', outcome: 'resumed', workload: { pid, comm, threads }, rounds: [] },
    pages: { present: 0, parent: 0, lazy: 0, zero: 0, hole: 0 },
    compressed: { pages: 0, bytes: 0 },
    ...{ bytesOnWire: 0, blackoutMs: 0, totalMs: 0, notMoved: [] },
    ...measured,
    blackout: { freezeMs: 0, captureMs: 0, ...measured.blackout },
  }
  const there = destination?.report as DestinationReport | undefined
  return mergeReports(complete, there?.blackout === undefined ? undefined : there)
}
