import { pageBytes } from '@pageferry/base'
import type { CompressionCounts } from '@pageferry/wire'
import type { Outcome } from './machine.js'
import type { Mode, VerifySetting } from './settings.js'

/** One pre-dump round, or the final one. Pages are base pages of 4 KiB; bytes are those on the lanes. */
export interface RoundReport {
  round: number
  pages: number
  zeroPages: number
  bytes: number
  durationMs: number
}

/** The final pagemap, in pages: installed before and unchanged, sent in the freeze, left for later, zeros. */
export interface PagesReport {
  present: number
  parent: number
  lazy: number
  zero: number
  hole: number
}

export interface BlackoutReport {
  freezeMs: number
  captureMs: number
  transferMs: number
  restoreMs: number
  resumeMs: number
}

export interface FaultsReport {
  count: number
  p50Us: number
  p90Us: number
  p99Us: number
  maxUs: number
  /** Time that threads of the workload spent waiting for pages, all threads together. */
  stallMs: number
}

/** One page whose memory on the destination is not the original's. */
export interface DifferingPage {
  /** Address of the page in the workload, hexadecimal with 0x. */
  address: string
  /** Its area: a name as in /proc/PID/maps, or the kind of memory. '' when it is unknown. */
  area: string
}

export interface VerifyReport {
  when: Exclude<VerifySetting, 'off'>
  /** Pages whose hash was compared with the original's. */
  pages: number
  /** Pages that differ, are present and must not be, or are missing and must be present. */
  mismatches: number
  /** Pages that were not compared, because the original or its hash was lost. */
  unproven: number
  /** The first few that count as mismatches or unproven. */
  differing: DifferingPage[]
  /** Part inside the downtime: the search for pages that must be absent, and all comparing of before-resume. */
  downtimeMs: number
  /** Part after the last lazy page had come. The workload runs meanwhile. */
  proofMs: number
}

/** A part of the workload that the destination does not have. */
export interface NotMoved {
  /** The first few with this reason, and how many more there are. */
  what: string
  reason: string
  count: number
}

/** Content of the file that `--report FILE` writes. Field names are stable API. */
export interface MigrationReport {
  id: string
  mode: Mode
  outcome: Outcome
  workload: { pid: number; comm: string; threads: number }
  rounds: RoundReport[]
  pages: PagesReport
  bytesOnWire: number
  compressed: CompressionCounts
  /** From the start of the freeze until the source received Running: one clock, too long by half a round trip. */
  blackoutMs: number
  blackout: BlackoutReport
  faults: FaultsReport
  pushedPages: number
  /**
   * Pages that were requested before they were touched, and those of them that a stream of faults is known to have
   * reached.
   */
  prefetchedPages: number
  usefulPrefetchedPages: number
  drainMs: number
  totalMs: number
  verify: VerifyReport | null
  /** Everything that the move did not carry over, with the reasons. */
  notMoved: NotMoved[]
}

/** The source's part of the report. */
export interface SourceReport
  extends Pick<
    MigrationReport,
    | 'id'
    | 'mode'
    | 'outcome'
    | 'workload'
    | 'rounds'
    | 'pages'
    | 'bytesOnWire'
    | 'compressed'
    | 'blackoutMs'
    | 'totalMs'
    | 'notMoved'
  > {
  blackout: Pick<BlackoutReport, 'freezeMs' | 'captureMs'>
}

/** The destination's part of the report. */
export interface DestinationReport
  extends Pick<
    MigrationReport,
    'faults' | 'pushedPages' | 'prefetchedPages' | 'usefulPrefetchedPages' | 'drainMs' | 'verify' | 'notMoved'
  > {
  blackout: Pick<BlackoutReport, 'restoreMs' | 'resumeMs'>
}

export const NO_FAULTS: Readonly<FaultsReport> = {
  count: 0,
  p50Us: 0,
  p90Us: 0,
  p99Us: 0,
  maxUs: 0,
  stallMs: 0,
}

/**
 * Merges both reports. `transferMs` is the rest of the blackout after the parts that were measured on one machine each:
 * the wire, and the time in which one side waited for the other. Without a destination (it never got that far) its part
 * is zeros.
 */
export function mergeReports(source: SourceReport, destination?: DestinationReport): MigrationReport {
  const { freezeMs, captureMs } = source.blackout
  const { restoreMs, resumeMs } = destination?.blackout ?? { restoreMs: 0, resumeMs: 0 }
  const rest = source.blackoutMs - freezeMs - captureMs - restoreMs - resumeMs
  return {
    id: source.id,
    mode: source.mode,
    outcome: source.outcome,
    workload: source.workload,
    rounds: source.rounds.map((round) => ({ ...round, durationMs: round2(round.durationMs) })),
    pages: source.pages,
    bytesOnWire: source.bytesOnWire,
    compressed: source.compressed,
    blackoutMs: round2(source.blackoutMs),
    // Phases of both sides overlap a little, so the rest can come out below zero.
    blackout: {
      freezeMs: round2(freezeMs),
      captureMs: round2(captureMs),
      transferMs: round2(Math.max(0, rest)),
      restoreMs: round2(restoreMs),
      resumeMs: round2(resumeMs),
    },
    faults: destination?.faults ?? { ...NO_FAULTS },
    pushedPages: destination?.pushedPages ?? 0,
    prefetchedPages: destination?.prefetchedPages ?? 0,
    usefulPrefetchedPages: destination?.usefulPrefetchedPages ?? 0,
    drainMs: round2(destination?.drainMs ?? 0),
    totalMs: round2(source.totalMs),
    verify: destination?.verify ?? null,
    notMoved: [...source.notMoved, ...(destination?.notMoved ?? [])],
  }
}

/** Nearest rank: the smallest sample that at least `p` percent do not exceed. 0 without samples. */
export function percentile(sorted: ArrayLike<number>, p: number): number {
  if (sorted.length === 0) return 0
  const rank = Math.ceil((Math.min(100, Math.max(0, p)) / 100) * sorted.length)
  return sorted[Math.max(0, rank - 1)]
}

/** Figures from one latency per fault, in microseconds, in any order. */
export function faultsFromSamples(latenciesUs: ArrayLike<number>): FaultsReport {
  const sorted = Float64Array.from(latenciesUs).sort()
  let sumUs = 0
  for (const us of sorted) sumUs += us
  return {
    count: sorted.length,
    p50Us: round2(percentile(sorted, 50)),
    p90Us: round2(percentile(sorted, 90)),
    p99Us: round2(percentile(sorted, 99)),
    maxUs: round2(sorted.length === 0 ? 0 : sorted[sorted.length - 1]),
    stallMs: round2(sumUs / 1000),
  }
}

const OUTCOMES: Record<Outcome, string> = {
  migrated: 'moved: it runs on the destination, the original is gone',
  kept: 'moved, NOT PROVEN: it runs on the destination, the original is kept frozen on the source',
  resumed: 'failed before the handover: it runs on the source as before',
  abandoned: 'given up by the destination: it runs on the source again',
  exited: 'the workload ended by itself on the source',
  discarded: 'failed before the handover: nothing is left on the destination',
}

/** The report for a reader, one line per entry, without colours. */
export function formatReport(report: MigrationReport): string[] {
  const { workload, pages, blackout, faults } = report
  const lines = [
    `Migration ${report.id} (${report.mode}) of ${workload.comm}, pid ${workload.pid}, ${plural(workload.threads, 'thread')}`,
    `  outcome    ${OUTCOMES[report.outcome]}`,
  ]
  for (const round of report.rounds) {
    lines.push(
      `  round ${String(round.round).padEnd(4)} ${count(round.pages)} pages, ${count(round.zeroPages)} of them zero, ` +
        `${bytes(round.bytes)} in ${ms(round.durationMs)}`,
    )
  }
  lines.push(
    `  pages      ${count(pages.parent)} unchanged since a round, ${count(pages.present)} sent in the freeze, ` +
      `${count(pages.lazy)} lazy, ${count(pages.zero)} zero, ${count(pages.hole)} holes`,
    `  blackout   ${ms(report.blackoutMs)}: freeze ${ms(blackout.freezeMs)}, capture ${ms(blackout.captureMs)}, ` +
      `transfer ${ms(blackout.transferMs)}, restore ${ms(blackout.restoreMs)}, resume ${ms(blackout.resumeMs)}`,
    `  lazy phase ${ms(report.drainMs)}: ${count(report.pushedPages)} pages pushed, ${plural(faults.count, 'fault')}`,
  )
  if (faults.count > 0) {
    lines.push(
      `  prefetch   ${count(report.prefetchedPages)} pages asked for ahead, ${count(report.usefulPrefetchedPages)} known to be useful`,
      `  faults     p50 ${us(faults.p50Us)}, p90 ${us(faults.p90Us)}, p99 ${us(faults.p99Us)}, ` +
        `max ${us(faults.maxUs)}, threads waited ${ms(faults.stallMs)}`,
    )
  }
  lines.push(`  total      ${ms(report.totalMs)}, ${bytes(report.bytesOnWire)} on the wire`)
  const { verify, compressed } = report
  if (compressed.pages > 0) {
    const ratio = (compressed.pages * pageBytes) / compressed.bytes
    lines.push(
      `  zstd       ${count(compressed.pages)} pages in ${bytes(compressed.bytes)}, ${ratio.toFixed(1)} times smaller`,
    )
  }
  return [...lines, ...verifyLines(verify), ...notMovedLines(report)]
}

function verifyLines(verify: VerifyReport | null): string[] {
  if (verify === null) return ['  verify     not asked for']
  const { when, pages, mismatches, unproven, differing, downtimeMs, proofMs } = verify
  const compared = plural(pages, 'page')
  if (mismatches + unproven === 0) {
    const cost =
      when === 'before-resume' ? `, ${ms(downtimeMs)} of the downtime` : ` in ${ms(proofMs)} while it ran`
    return [`  verify     ${compared} compared${cost}, all equal`]
  }
  const lines = [`  verify     ${count(mismatches)} of ${compared} DIFFER, ${count(unproven)} not compared`]
  for (const { address, area } of differing) lines.push(`             ${address} ${area}`)
  return lines
}

function notMovedLines({ notMoved }: MigrationReport): string[] {
  return notMoved.map(({ what, reason }) => `  not moved  ${what}: ${reason}`)
}

function round2(value: number): number {
  return Math.round(value * 100) / 100
}

function count(value: number): string {
  return value.toLocaleString('en-US')
}

function plural(value: number, noun: string): string {
  return `${count(value)} ${noun}${value === 1 ? '' : 's'}`
}

function ms(value: number): string {
  return value >= 10_000 ? `${(value / 1000).toFixed(1)} s` : `${value.toFixed(1)} ms`
}

function us(value: number): string {
  return `${value.toFixed(0)} µs`
}

function bytes(value: number): string {
  if (value >= 1024 ** 3) return `${(value / 1024 ** 3).toFixed(2)} GiB`
  if (value >= 1024 ** 2) return `${(value / 1024 ** 2).toFixed(1)} MiB`
  return `${(value / 1024).toFixed(1)} KiB`
}
