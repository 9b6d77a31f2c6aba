import { type Command, InvalidArgumentError, Option } from 'commander'
import {
  type CommandLine,
  MIGRATION_SETTINGS,
  type MigrationSettings,
  type Setting,
  settingEntries,
} from '../api/settings.js'

/** The settings of a migration as options of commander, for every command that migrates. */

type SettingName = keyof MigrationSettings

const entries = settingEntries(MIGRATION_SETTINGS)

/** Settings that the command line offers. */
const OPTION_NAMES: readonly SettingName[] = entries
  .filter(([, { commandLine }]) => commandLine !== undefined)
  .map(([name]) => name)

/**
 * Adds the options of the named settings.
 * @param defaults of this command, instead of the service's
 */
export function addSettings(
  command: Command,
  names: readonly SettingName[] = OPTION_NAMES,
  defaults: Partial<MigrationSettings> = {},
): Command {
  for (const [name, setting] of entries) {
    if (setting.commandLine === undefined || !names.includes(name)) continue
    command.addOption(optionOf(setting, setting.commandLine, defaults[name]))
  }
  return command
}

/** Settings given on the command line. The service fills in the others. */
export function settingsOf(flags: object): Partial<MigrationSettings> {
  const given = entries.flatMap(([name, { commandLine }]) => {
    if (commandLine === undefined) return []
    const value = (flags as Record<string, unknown>)[new Option(commandLine.flags).attributeName()]
    return value === undefined ? [] : [[name, value]]
  })
  return Object.fromEntries(given)
}

/** Parses a whole number in decimal digits. */
export function integer(smallest: number, largest: number): (text: string) => number {
  return (text) => {
    if (!/^\d{1,15}$/.test(text) || Number(text) < smallest || Number(text) > largest) {
      throw new InvalidArgumentError(`It must be a whole number from ${smallest} to ${largest}.`)
    }
    return Number(text)
  }
}

/** Uses commander's own sentence. `Option.choices` would repeat the list in the help. */
function choice(choices: readonly string[]): (text: string) => string {
  return (text) => {
    if (!choices.includes(text)) throw new InvalidArgumentError(`Allowed choices are ${choices.join(', ')}.`)
    return text
  }
}

/**
 * The default is in the help and not in the option: a command sends only the user's values. The service, which may be
 * of another version, fills in the rest.
 */
function optionOf(setting: Setting, commandLine: CommandLine, own: unknown): Option {
  const { flags, preset, absence } = commandLine
  const limits: string[] = []
  const option = new Option(flags)
  if (setting.enum !== undefined) {
    const choices = setting.enum.filter((each) => absence === undefined || each !== setting.default)
    option.argParser(choice(choices))
    limits.push(choices.join(', '))
  } else if (setting.type === 'integer') {
    const { minimum = 0, maximum = Number.MAX_SAFE_INTEGER } = setting
    const smallest = absence !== undefined && minimum === setting.default ? minimum + 1 : minimum
    option.argParser(integer(smallest, maximum))
    limits.push(`${smallest} to ${maximum}`)
  }
  // Commander itself prints a command's own default.
  if (own === undefined && setting.default !== undefined) {
    limits.push(`default ${absence ?? setting.default}`)
  }
  const text = commandLine.description ?? setting.description
  option.description = limits.length === 0 ? text : `${text} (${limits.join('; ')})`
  if (preset !== undefined) option.preset(preset)
  if (own !== undefined) option.default(own)
  return option
}
