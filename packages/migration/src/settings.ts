import { PageferryError } from '@pageferry/base'

/** hybrid: rounds, then the rest lazily. precopy: nothing lazily. postcopy: no rounds. */
export const MODES = ['hybrid', 'precopy', 'postcopy'] as const
export type Mode = (typeof MODES)[number]

/** auto: pages are compressed on a connection where that was measured to gain. zstd: always. Both: if the peer can. */
export const COMPRESSION_SETTINGS = ['auto', 'off', 'zstd'] as const
export type CompressionSetting = (typeof COMPRESSION_SETTINGS)[number]

/**
 * When the memory on the destination is compared with the frozen original. after-resume: costs no downtime; a difference
 * is found while the workload runs on the destination, and the original is kept. before-resume: costs downtime; a
 * difference in what the workload resumes with keeps it on the source. Lazy pages are compared after the resume in both.
 */
export const VERIFY_SETTINGS = ['off', 'after-resume', 'before-resume'] as const
export type VerifySetting = (typeof VERIFY_SETTINGS)[number]

/** What a user chooses for one migration. */
export interface Settings {
  mode: Mode
  /** Pre-dump rounds at most, without the final one. Ignored by mode postcopy. */
  maxRounds: number
  /**
   * Goal of the stop rule for the whole pause. Not a promise. Of what its fixed part leaves, hot pages make use: see
   * pages/rounds.ts.
   */
  maxDowntimeMs: number
  /**
   * What rounds and push may send, in 10^6 bits per second; 0: as much as they can. What the workload waits for is
   * never held back: the final round, and pages that it faults on.
   */
  maxBandwidthMbit: number
  verify: VerifySetting
  /** Connections for page batches. */
  bulkLanes: number
  /** What each of them may have sent without acknowledgement. */
  bulkWindowMiB: number
  compression: CompressionSetting
}

export const DEFAULT_SETTINGS: Readonly<Settings> = {
  mode: 'hybrid',
  // A workload that writes slower than the network carries converges in 3-5 rounds; one that does not is
  // better served by the lazy phase than by more rounds.
  maxRounds: 8,
  // The project's later blackout target.
  maxDowntimeMs: 25,
  maxBandwidthMbit: 0,
  verify: 'off',
  bulkLanes: 1,
  // As wire/limits.ts, where the reason is.
  bulkWindowMiB: 4,
  compression: 'auto',
}

/** Of all lanes together: the destination's worker holds so much while a round's memory map is being applied. */
const maxWindowsMiB = 32

/** Ranges, also for the API's schema. Each round costs a scan of the memory map; 1000 is far beyond use. */
export const LIMITS = {
  maxRounds: { min: 1, max: 1000 },
  maxDowntimeMs: { min: 1, max: 60_000 },
  // More than any network card carries.
  maxBandwidthMbit: { min: 0, max: 1_000_000 },
  // One connection fills 10 Gbit/s; each further one is a worker's buffer and a window of its own.
  bulkLanes: { min: 1, max: 8 },
  // One batch; what the protocol allows.
  bulkWindowMiB: { min: 1, max: 16 },
} as const

/**
 * Settings from a request or a command line, with the defaults filled in. Values may be strings (options of
 * a command line); unknown keys are left alone, they belong to the caller.
 * @throws PageferryError BAD_REQUEST with every problem at once in `details.problems`.
 */
export function parseSettings(input: Readonly<Record<string, unknown>>): Settings {
  const problems: string[] = []
  const integer = (name: keyof typeof LIMITS): number => {
    const given = input[name]
    if (given === undefined) return DEFAULT_SETTINGS[name]
    const { min, max } = LIMITS[name]
    const value = typeof given === 'string' && given.trim() !== '' ? Number(given) : given
    if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) return value
    problems.push(`${name} must be a whole number from ${min} to ${max}, not ${show(given)}`)
    return DEFAULT_SETTINGS[name]
  }
  const settings: Settings = {
    mode: DEFAULT_SETTINGS.mode,
    maxRounds: integer('maxRounds'),
    maxDowntimeMs: integer('maxDowntimeMs'),
    maxBandwidthMbit: integer('maxBandwidthMbit'),
    verify: DEFAULT_SETTINGS.verify,
    bulkLanes: integer('bulkLanes'),
    bulkWindowMiB: integer('bulkWindowMiB'),
    compression: DEFAULT_SETTINGS.compression,
  }
  const { mode, verify, compression } = input
  const known = COMPRESSION_SETTINGS.find((each) => each === compression)
  if (known !== undefined) settings.compression = known
  else if (compression !== undefined)
    problems.push(`compression must be one of ${COMPRESSION_SETTINGS.join(', ')}, not ${show(compression)}`)
  const { bulkLanes, bulkWindowMiB } = settings
  if (bulkLanes * bulkWindowMiB > maxWindowsMiB) {
    problems.push(
      `bulkLanes x bulkWindowMiB must be at most ${maxWindowsMiB}, not ${bulkLanes * bulkWindowMiB}`,
    )
  }
  if (isMode(mode)) settings.mode = mode
  else if (mode !== undefined) problems.push(`mode must be one of ${MODES.join(', ')}, not ${show(mode)}`)
  const when = VERIFY_SETTINGS.find((each) => each === verify)
  if (when !== undefined) settings.verify = when
  else if (verify !== undefined)
    problems.push(`verify must be one of ${VERIFY_SETTINGS.join(', ')}, not ${show(verify)}`)
  if (problems.length > 0) {
    throw new PageferryError('BAD_REQUEST', problems.join('; '), { details: { problems } })
  }
  return settings
}

export function isMode(value: unknown): value is Mode {
  return MODES.some((mode) => mode === value)
}

function show(value: unknown): string {
  return JSON.stringify(value) ?? String(value)
}
