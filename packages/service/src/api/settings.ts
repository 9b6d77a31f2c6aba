import { PageferryError } from '@pageferry/base'
import type { Mode, VerifySetting } from '@pageferry/migration'
import { type Static, Type } from 'typebox'

/**
 * The settings that a user chooses for one migration: name, range, default and meaning of each. The HTTP API
 * (schemas.ts), the command line and its help (client/options.ts) are made from them.
 *
 * The source's service fills in the defaults, so its worker gets complete settings and need not load this file.
 */

/** hybrid: rounds, then post-copy. precopy: no lazy pages. postcopy: no rounds. */
export const MODES = ['hybrid', 'precopy', 'postcopy'] as const satisfies readonly Mode[]

/**
 * When the destination's memory is compared with the frozen original. after-resume costs no downtime: a difference is
 * found while the workload runs on the destination, and the original is kept. before-resume costs downtime: a
 * difference in the memory present at the resume keeps the workload on the source. Both compare lazy pages after the
 * resume.
 */
const VERIFY_SETTINGS = ['off', 'after-resume', 'before-resume'] as const satisfies readonly VerifySetting[]

/** How the command line offers a setting. A setting without this is only in the API. */
export interface CommandLine {
  /** Flags in commander's form: `--name <placeholder>`, `--name [placeholder]`, `--name` or `--no-name`. */
  flags: string
  /** Help for `--no-name`, where the setting's description says the opposite. */
  description?: string
  /** The value of `--name` without an argument, if it has a `[placeholder]`. */
  preset?: string
  /** Meaning of the option's absence, for the help. The option then does not take the default as its value. */
  absence?: string
}

/**
 * Of all files together that are open or mapped and have no name any more, without their holes. What has changed of them
 * travels in the freeze: 64 MiB take half a second at 1 Gbit/s. Both sides keep the limit.
 */
const ghostLimit = {
  minimum: 0,
  maximum: 1_048_576,
  default: 64,
  description: 'maximum contents of deleted files that are still in use, in MiB',
  commandLine: { flags: '--ghost-limit <MiB>' },
}

/** Settings with a default, so that a request without them is complete all the same. */
const defaulted = {
  mode: Type.Enum([...MODES], {
    default: 'hybrid',
    description: 'how memory moves: pre-copy rounds and then post-copy (hybrid), or one of them alone',
    commandLine: { flags: '--mode <mode>' },
  }),
  // A workload that writes slower than the network carries converges in 3-5 rounds. Any other gains more from post-copy
  // than from more rounds. Each round costs a scan of the memory map; 1000 is far beyond use.
  maxRounds: Type.Integer({
    minimum: 1,
    maximum: 1000,
    default: 8,
    description: 'maximum number of pre-copy rounds, without the final one',
    commandLine: { flags: '--max-rounds <n>' },
  }),
  // Goal of the stop rule for the whole downtime. Hot pages use the part that is not fixed: see pages/rounds.ts.
  maxDowntimeMs: Type.Integer({
    minimum: 1,
    maximum: 60_000,
    default: 25,
    description: 'target downtime in ms, no promise; 20 ms of it are for process state',
    commandLine: { flags: '--max-downtime <ms>' },
  }),
  // In 10^6 bits per second; 0: no limit. The maximum is more than any network card carries. The workload waits for the
  // final round and for pages that it faults on, so these are never delayed.
  maxBandwidthMbit: Type.Integer({
    minimum: 0,
    maximum: 1_000_000,
    default: 0,
    description: 'limit in Mbit/s for rounds and push; faults never wait for it',
    commandLine: { flags: '--max-bandwidth <Mbit/s>', absence: 'no limit' },
  }),
  // The destination follows the source.
  verify: Type.Enum([...VERIFY_SETTINGS], {
    default: 'off',
    description: 'compare all memory with the source: before-resume costs downtime, after-resume does not',
    commandLine: { flags: '--verify [when]', preset: 'after-resume', absence: 'off' },
  }),
  ghostLimitMiB: Type.Integer(ghostLimit),
  // One connection fills 10 Gbit/s. Each further one costs a buffer of the worker and a window of its own.
  bulkLanes: Type.Integer({
    minimum: 1,
    maximum: 8,
    default: 1,
    description: 'number of lanes: connections that carry pages',
    commandLine: { flags: '--bulk-lanes <n>' },
  }),
  // Data in flight without acknowledgement. The default is that of wire/limits.ts, which gives the reason. The minimum
  // is one batch, as the protocol demands.
  bulkWindowMiB: Type.Integer({
    minimum: 1,
    maximum: 16,
    default: 4,
    description: 'maximum data in flight per lane in MiB; all lanes together may have 32',
    commandLine: { flags: '--bulk-window <MiB>' },
  }),
  // auto and zstd compress only if the peer can decompress.
  compression: Type.Enum(['auto', 'off', 'zstd'], {
    default: 'auto',
    description: 'compress pages if a measurement shows a gain (auto), never (off), or always (zstd)',
    commandLine: { flags: '--compression <when>' },
  }),
}

/** Settings that the source's worker chooses by itself if the request leaves them out. */
const sourceChoices = {
  tracker: Type.Optional(
    Type.Enum(['wp-async', 'soft-dirty', 'page-hash'], {
      description: 'how to find written pages; without it, the best way of the kernel',
      commandLine: { flags: '--tracker <kind>' },
    }),
  ),
  // It also keeps hot pages out of the freeze, so that a measurement of faults sees all of them.
  pushDelayMs: Type.Optional(
    Type.Integer({
      minimum: 0,
      maximum: 3_600_000,
      description: 'time in ms after the handover in which pages are sent only on request',
    }),
  ),
}

/** Properties of the request to the source. */
export const SOURCE_SETTINGS = { ...defaulted, ...sourceChoices }

/** Properties of the request to the destination. */
export const DESTINATION_SETTINGS = {
  ghostLimitMiB: Type.Optional(Type.Integer(ghostLimit)),
  // Default true. The destination's worker needs no value: the command line and the API can only turn it off.
  prefetch: Type.Optional(
    Type.Boolean({
      description: 'fetch pages that will probably fault next',
      commandLine: { flags: '--no-prefetch', description: 'fetch only pages that fault' },
    }),
  ),
  newPidNamespace: Type.Optional(
    Type.Boolean({
      description: 'restore into a new pid namespace',
      commandLine: { flags: '--new-pid-namespace' },
    }),
  ),
  // The length is PATH_MAX of Linux.
  imagesDir: Type.Optional(
    Type.String({
      pattern: '^/',
      maxLength: 4096,
      description: 'store the CRIU images in this directory of the destination',
      commandLine: { flags: '--images <dir>' },
    }),
  ),
}

export const MIGRATION_SETTINGS = { ...SOURCE_SETTINGS, ...DESTINATION_SETTINGS }

const SettingsSchema = Type.Object(defaulted)
/** The source's settings with their defaults filled in, as its worker uses them. */
export type Settings = Static<typeof SettingsSchema>
const MigrationSettingsSchema = Type.Object(MIGRATION_SETTINGS)
export type MigrationSettings = Static<typeof MigrationSettingsSchema>

/** One property for code that treats all settings alike. The types of typebox do not keep these fields. */
export interface Setting {
  type?: 'integer' | 'string' | 'boolean'
  minimum?: number
  maximum?: number
  enum?: readonly string[]
  default?: string | number
  description: string
  commandLine?: CommandLine
}

export function settingEntries<Name extends string>(properties: Record<Name, object>): [Name, Setting][] {
  return Object.entries(properties) as [Name, Setting][]
}

/** The properties of a request that have a default. */
export function defaultsOf(properties: Record<string, object>): Record<string, unknown> {
  const known = settingEntries(properties).filter(([, setting]) => setting.default !== undefined)
  return Object.fromEntries(known.map(([name, setting]) => [name, setting.default]))
}

export const DEFAULT_SETTINGS = defaultsOf(defaulted) as Readonly<Settings>

/** All lanes together: the destination's worker may hold this much while it applies a round's memory map. */
const maxWindowsMiB = 32

/**
 * Parses settings of a request or a command line, and fills in the defaults. Values may be strings (options of a
 * command line). Unknown keys belong to the caller and are ignored.
 * @throws PageferryError BAD_REQUEST with every problem at once in `details.problems`.
 */
export function parseSettings(input: Readonly<Record<string, unknown>>): Settings {
  const problems: string[] = []
  const given = settingEntries(defaulted).flatMap(([name, setting]) => {
    if (input[name] === undefined) return []
    const value = parseValue(setting, input[name])
    if (value !== undefined) return [[name, value]]
    problems.push(`${name} must be ${expectation(setting)}, not ${show(input[name])}`)
    return []
  })
  const settings: Settings = { ...DEFAULT_SETTINGS, ...Object.fromEntries(given) }
  const windowsMiB = settings.bulkLanes * settings.bulkWindowMiB
  if (windowsMiB > maxWindowsMiB) {
    problems.push(`bulkLanes x bulkWindowMiB must be at most ${maxWindowsMiB}, not ${windowsMiB}`)
  }
  if (problems.length > 0) {
    throw new PageferryError('BAD_REQUEST', problems.join('; '), { details: { problems } })
  }
  return settings
}

function parseValue(setting: Setting, given: unknown): string | number | undefined {
  if (setting.enum !== undefined) return setting.enum.find((each) => each === given)
  const { minimum = 0, maximum = Number.MAX_SAFE_INTEGER } = setting
  const value = typeof given === 'string' && given.trim() !== '' ? Number(given) : given
  const isRight = typeof value === 'number' && Number.isInteger(value) && value >= minimum && value <= maximum
  return isRight ? value : undefined
}

function expectation({ enum: choices, minimum, maximum }: Setting): string {
  if (choices !== undefined) return `one of ${choices.join(', ')}`
  return `a whole number from ${minimum} to ${maximum}`
}

function show(value: unknown): string {
  return JSON.stringify(value) ?? String(value)
}
