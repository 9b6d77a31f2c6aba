import { resolve } from 'node:path'
import { withReach } from '@pageferry/lab'
import {
  failureOf,
  type MigrationOptions,
  type MigrationResult,
  migrate,
  reportOf,
  whereabouts,
} from '@pageferry/service/client'
import { settingsOf } from '@pageferry/service/options'
import { ExitWith, failureStatus, printError, unprovenStatus } from '../errors.js'
import { Progress } from '../ui/progress.js'
import { printReport, requireWritable, writeReport } from '../ui/report.js'

/** Options of `migrate` and `lab run` as commander gives them, with those of the settings. */
export interface MigrationFlags {
  report?: string
}

interface MigrateFlags extends MigrationFlags {
  source: string
  destination: string
  pid: number
}

export function migrationOptions(flags: MigrationFlags): MigrationOptions {
  const settings = settingsOf(flags)
  const { imagesDir } = settings
  return imagesDir === undefined ? settings : { ...settings, imagesDir: resolve(imagesDir) }
}

/** `migrate`: shows progress, then the report, then a last sentence that says where the process is. */
export async function migrateCommand(flags: MigrateFlags): Promise<void> {
  requireWritable(flags.report)
  const progress = new Progress()
  const controller = new AbortController()
  const onSignal = (): void => {
    if (controller.signal.aborted) process.exit(130) // pressed twice: the services undo it without us
    progress.line('Cancelling; the workload stays on the source unless it has been handed over.')
    controller.abort()
  }
  process.on('SIGINT', onSignal).on('SIGTERM', onSignal)
  const { source, destination, pid } = flags
  let result: MigrationResult
  try {
    const request = { source, destination, pid, ...migrationOptions(flags) }
    const { signal } = controller
    result = await withReach((reach) => migrate(request, { onStatus: progress.update, signal, reach }))
  } finally {
    progress.stop()
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal)
  }
  conclude(result, flags.report, process.stdout)
}

/**
 * Prints the report, writes the file, prints the sentence. Throws the exit status of a migration that did not succeed.
 */
export function conclude(
  result: MigrationResult,
  reportFile: string | undefined,
  out: NodeJS.WritableStream,
): void {
  const report = reportOf(result)
  if (report !== null) {
    if (reportFile !== undefined) writeReport(reportFile, report)
    // For a failed migration only the reason matters.
    if (result.migrated || result.kept || result.unwatched) printReport(report, out)
  }
  if (result.migrated) {
    out.write(`${whereabouts(result)}\n`)
    return
  }
  if (result.unwatched) {
    process.stderr.write(`It was too late to cancel. ${whereabouts(result)}\n`)
    throw new ExitWith(130)
  }
  const failure = failureOf(result)
  printError(failure)
  process.stderr.write(`${whereabouts(result)}\n`)
  throw new ExitWith(result.kept ? unprovenStatus : failureStatus(failure, result.touched))
}
