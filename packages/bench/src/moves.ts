import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError } from '@pageferry/base'
import { type Lab, migrateInLab, waitForExit } from '@pageferry/lab'
import type { MigrationReport } from '@pageferry/migration'
import {
  failureOf,
  type MigrationOptions,
  type MigrationResult,
  reportOf,
  type Status,
} from '@pageferry/service/client'
import { withLink } from './link/link.js'
import type { LinkOptions } from './link/options.js'
import {
  DEFAULT_PROBE,
  type ProbeOptions,
  type ProbeResult,
  probeCommand,
  readProbeResult,
  requireRight,
  waitUntilReady,
} from './probe.js'

/** A status, and the Date.now() of its arrival. */
export interface TimedStatus {
  atMs: number
  status: Status
}

/** One probe that was moved, with the results of the probe and of pageferry. */
export interface Move {
  probe: ProbeResult
  report: MigrationReport
  statuses: TimedStatus[]
}

/** A probe that dirties pages does so for a while before it is moved. */
const settleMs = 500

/** Longest phase of a probe on the destination: all of its memory one page at a time over a slow link. */
const exitTimeoutMs = 900_000

export interface MoveOptions {
  signal?: AbortSignal
  /** Time between the probe's start and its move. */
  settle?: number
  link?: LinkOptions
}

/** Runs whose figures are lost are repeated, at most this often for all runs together. */
const maxRepeats = 3

/**
 * Makes `runs` moves with the same options. When a worker of the source dies, its successor completes the migration but
 * does not know the downtime. Such a run is no measurement; it is reported and repeated.
 */
export async function moveProbes(
  lab: Lab,
  runs: number,
  probe: ProbeOptions,
  migration: MigrationOptions,
  options: MoveOptions = {},
): Promise<Move[]> {
  const moves: Move[] = []
  for (let repeats = 0; moves.length < runs; ) {
    const move = await moveProbe(lab, probe, migration, options)
    if (move.report.blackoutMs > 0) moves.push(move)
    else {
      repeats++
      process.stderr.write(`A run is repeated: the source's worker was replaced. ${sourceComplaints(lab)}\n`)
      if (repeats > maxRepeats) {
        throw new PageferryError('INTERNAL', `Workers of the source were replaced in ${repeats} runs.`)
      }
    }
  }
  return moves
}

/** Lines about deaths in the dump-service's log. The lab and its logs will be gone. */
function sourceComplaints(lab: Lab): string {
  const lines = readFileSync(join(lab.a.directory, 'source.log'), 'utf8').split('\n')
  return lines.filter((line) => /worker is gone|"level":[56]0/.test(line)).join('\n')
}

/** Starts a probe on host a, moves it to host b, waits until it has touched and compared all of its memory there. */
async function moveProbe(
  lab: Lab,
  options: ProbeOptions,
  migration: MigrationOptions,
  { signal, settle = settleMs, link }: MoveOptions = {},
): Promise<Move> {
  const directory = mkdtempSync(join(tmpdir(), 'pageferry-bench-'))
  const resultPath = join(directory, 'result.json')
  try {
    const { pid, output } = await lab.a.start(probeCommand(options, resultPath), { cwd: '/' })
    await waitUntilReady(output, signal)
    await sleep(settle, undefined, { signal })
    const statuses: TimedStatus[] = []
    const note = (status: Status): void => {
      statuses.push({ atMs: Date.now(), status })
    }
    const result = await withLink(lab, link, (via) =>
      migrateInLab(lab, pid, { ...migration, via }, { onStatus: note, signal }),
    )
    const report = requireMigrated(result)
    const limit = AbortSignal.timeout(exitTimeoutMs)
    const exit = await waitForExit(lab, 'b', result.id, signal ? AbortSignal.any([signal, limit]) : limit)
    if (exit.kind !== 'exited' || exit.value !== 0) {
      const said = readFileSync(output, 'utf8').trim()
      throw new PageferryError(
        'VERIFY_FAILED',
        `The probe ended with ${exit.kind} ${exit.value ?? ''} on host b: ${said}`,
      )
    }
    const probe = readProbeResult(resultPath)
    requireRight(probe)
    return { probe, report, statuses }
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

/** The report of a migration that succeeded. */
export function requireMigrated(result: MigrationResult): MigrationReport {
  const report = reportOf(result)
  if (!result.migrated || report === null) throw failureOf(result)
  return report
}

/**
 * When the source first was in the phase of rounds, and when it began to freeze; undefined when no status showed it.
 */
export function roundTimes(statuses: readonly TimedStatus[]): { fromMs?: number; untilMs?: number } {
  const source = statuses.filter(({ status }) => status.role === 'source')
  const rounds = source.find(({ status }) => status.progress?.phase === 'round')
  const freeze = source.find(({ status }) => status.state === 'freezing' || status.state === 'dumping')
  return { fromMs: rounds?.atMs, untilMs: freeze?.atMs }
}

/** The parts of the downtime, in order. */
export function blackoutParts({ blackout }: MigrationReport): Record<string, number> {
  const { freezeMs, captureMs, transferMs, restoreMs, resumeMs } = blackout
  return { freeze: freezeMs, capture: captureMs, transfer: transferMs, restore: restoreMs, resume: resumeMs }
}

/**
 * Pages of the lazy phase that the destination had installed, over the milliseconds since it ran there. The service
 * reports them five times a second. If the phase was over before that, there are no points.
 */
export function installedOverTime(statuses: readonly TimedStatus[]): [ms: number, pages: number][] {
  const there = statuses.filter(({ status }) => status.role === 'destination')
  const start = there.find(({ status }) => status.state === 'running')?.atMs
  if (start === undefined) return []
  const points: [number, number][] = [[0, 0]]
  for (const { atMs, status } of there) {
    const { pendingPages, totalPages = 0 } = status.progress ?? {}
    if (pendingPages === undefined || totalPages === 0 || atMs < start) continue
    points.push([atMs - start, totalPages - pendingPages])
    if (pendingPages === 0) break
  }
  return points.length > 3 ? points : []
}

/**
 * Lets a probe use as much memory as the source and the destination will need together, and end. So a virtual machine's
 * host provides the memory now and not during the measurement.
 */
export async function warmUp(lab: Lab, sizeMiB: number): Promise<void> {
  const available = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1]
  const mostMiB = Math.floor((Number(available ?? 0) / 1024) * 0.8)
  if (2 * sizeMiB > mostMiB) {
    throw new PageferryError(
      'REFUSED',
      `Two copies of ${sizeMiB} MiB are needed at once, and this machine has ${mostMiB} MiB to spare; see --size.`,
    )
  }
  const directory = mkdtempSync(join(tmpdir(), 'pageferry-bench-'))
  const options = { ...DEFAULT_PROBE, pattern: 'sequential' as const }
  const command = probeCommand({ ...options, sizeMiB: 2 * sizeMiB }, join(directory, 'result.json'), [
    '--now',
  ])
  try {
    await lab.a.run(command, { cwd: '/' })
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}
