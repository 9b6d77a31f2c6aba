/*
 * Settings of a migration that appear in state machines, reports and workers. All settings, with ranges, defaults and
 * meaning, are in service/api/settings.ts, which workers do not load.
 */

export type Mode = 'hybrid' | 'precopy' | 'postcopy'

export type VerifySetting = 'off' | 'after-resume' | 'before-resume'
