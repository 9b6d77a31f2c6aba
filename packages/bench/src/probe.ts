import { spawn } from 'node:child_process'
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError } from '@pageferry/base'
import { nativeProgram } from './native.js'

/** The order in which the probe touches its memory, defined in programs/pattern.c. */
export const PATTERNS = ['sequential', 'uniform', 'zipf', 'stride', 'chase', 'shift'] as const
type Pattern = (typeof PATTERNS)[number]

export interface ProbeOptions {
  pattern: Pattern
  threads: number
  sizeMiB: number
  /** Share of the touches that write, 0 to 1. */
  writeRatio: number
  /** Pause of a thread between two touches. */
  thinkUs: number
  /** Pages that are written each second before the migration, at random. */
  dirtyRate: number
  /** Share of each page that a compressor can remove, 0 to 1. */
  redundancy: number
  /** Computes in the time before the migration, and counts the work. */
  work?: boolean
  /** A touch of this length or more counts as a stall. Default: 3 µs, see programs/probe.h. */
  stallUs?: number
}

export const DEFAULT_PROBE: Readonly<ProbeOptions> = {
  pattern: 'uniform',
  threads: 1,
  sizeMiB: 256,
  writeRatio: 0,
  thinkUs: 0,
  dirtyRate: 0,
  redundancy: 0,
}

/** Touches of one run. Times in nanoseconds of the probe's CLOCK_MONOTONIC. */
export interface TouchRecord {
  count: number
  sumNs: number
  maxNs: number
  /** Touches that took `stallThresholdNs` or longer, and the sum of their times over all threads. */
  stalls: number
  stallNs: number
  stallThresholdNs: number
  /** [middle of a bucket, count]; buckets are less than 1 % wide. */
  buckets: [ns: number, count: number][]
  /**
   * From the start of all touching. A touch counts in the slot in which it begins, its stall in every slot that it
   * reaches.
   */
  series: { slotMs: number; touches: number[]; stalls: number[]; stallUs: number[] }
}

/** The file that programs/probe.c writes. */
export interface ProbeResult {
  version: 1
  pattern: Pattern
  pages: number
  threads: number
  touchNs: number
  checkNs: number
  wrongPages: number
  firstWrongPage: number | null
  before: {
    dirtied: number
    /** The longest time in which it could not run before the migration, and the time in which it was moved. */
    longestGapNs: number
    moveGapNs: number
    work?: {
      /** CLOCK_REALTIME of the first slot. */
      startedAtMs: number
      slotMs: number
      units: number[]
      dirtiedPages: number[]
      /** Processor time of the probe. */
      cpuUs: number[]
    }
  }
  touches: TouchRecord
}

/** Command line of the probe. */
export function probeCommand(options: ProbeOptions, result: string, more: string[] = []): string[] {
  return [
    nativeProgram('probe'),
    ...['--result', result, '--pattern', options.pattern, '--threads', String(options.threads)],
    ...['--size', String(options.sizeMiB), '--write-ratio', String(options.writeRatio)],
    ...['--think-us', String(options.thinkUs), '--dirty-rate', String(options.dirtyRate)],
    ...['--redundancy', String(options.redundancy)],
    ...(options.work === true ? ['--work'] : []),
    ...(options.stallUs === undefined ? [] : ['--stall-ns', String(Math.round(options.stallUs * 1000))]),
    ...more,
  ]
}

/** The probe renames its file into place, so an existing file is complete. */
export function readProbeResult(path: string): ProbeResult {
  const result = JSON.parse(readFileSync(path, 'utf8')) as ProbeResult
  if (result.version !== 1) {
    throw new PageferryError('BAD_REQUEST', `${path} is not the result of a probe of this version`)
  }
  return result
}

/** @throws VERIFY_FAILED when the memory was wrong. */
export function requireRight({ wrongPages, firstWrongPage, pages }: ProbeResult): void {
  if (wrongPages === 0) return
  throw new PageferryError(
    'VERIFY_FAILED',
    `The probe found ${wrongPages} of its ${pages} pages wrong after the move; the first is page ${firstWrongPage}.`,
  )
}

/** Filling takes about a second per GiB. Memory that a virtual machine never used takes several times that. */
const readyTimeoutMs = 120_000
const pollMs = 10

/** Waits until the probe that writes to `output` has filled its memory. */
export async function waitUntilReady(output: string, signal?: AbortSignal): Promise<number> {
  const deadline = Date.now() + readyTimeoutMs
  for (;;) {
    const said = existsSync(output) ? readFileSync(output, 'utf8') : ''
    const ready = /^ready (\d+)$/m.exec(said)
    if (ready !== null) return Number(ready[1])
    if (said.includes('probe:')) throw new PageferryError('BAD_REQUEST', said.trim())
    if (Date.now() > deadline)
      throw new PageferryError('TIMEOUT', 'The probe does not get its memory filled.')
    await sleep(pollMs, undefined, { signal })
  }
}

/**
 * `bench probe`: starts a probe on this machine and leaves it there. It has a session of its own, no pipes and no
 * terminal, so that it can be moved. Its output goes to a file beside the result.
 */
export async function startProbe(options: ProbeOptions, result: string): Promise<number> {
  const [program, ...args] = probeCommand(options, result) as [string, ...string[]]
  const output = `${result}.log`
  const log = openSync(output, 'w')
  const child = spawn(program, args, { detached: true, stdio: ['ignore', log, log], cwd: '/' })
  closeSync(log)
  child.unref()
  return waitUntilReady(output)
}
