import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError } from '@pageferry/base'
import { type Lab, migrateInLab, waitForExit, withLab } from '@pageferry/lab'
import { exitText } from '@pageferry/migration'
import type { WorkloadExit } from '@pageferry/service/client'
import { ExitWith } from '../errors.js'
import { interruptible } from '../interrupt.js'
import { Progress } from '../ui/progress.js'
import { requireWritable } from '../ui/report.js'
import { conclude, type MigrationFlags, migrationOptions } from './migrate.js'

interface LabRunFlags extends MigrationFlags {
  settle: number
  newLab?: string
}

/** Exit status as a shell would report it; 1 when the end of the process is unknown. */
export function statusOf({ kind, value }: WorkloadExit): number {
  if (value === undefined) return 1
  return kind === 'exited' ? value : 128 + value
}

/**
 * `lab run -- CMD`: the exit status is that of CMD, which exits on host b; 3 or 4 when the migration failed. CMD's
 * output is all of standard output.
 */
export async function labRun(command: string[], flags: LabRunFlags): Promise<void> {
  if (command.length === 0) throw new PageferryError('BAD_REQUEST', 'A command is needed after "--".')
  requireWritable(flags.report)
  const exit = await interruptible('Interrupted; the lab and everything in it is gone.', (signal) =>
    withLab((lab) => runOnce(lab, command, flags, signal), { name: flags.newLab, signal }),
  )
  if (exit.kind !== 'exited') process.stderr.write(`${command[0]} ${exitText(exit)}.\n`)
  throw new ExitWith(statusOf(exit))
}

async function runOnce(
  lab: Lab,
  command: string[],
  flags: LabRunFlags,
  signal: AbortSignal,
): Promise<WorkloadExit> {
  const { pid, output } = await lab.a.start(command)
  const progress = new Progress()
  try {
    progress.line(`${command[0]} runs on host a as process ${pid}.`)
    await sleep(flags.settle, undefined, { signal })
    if (lab.a.outerPid(pid) === null) {
      throw new PageferryError(
        'WORKLOAD_EXITED',
        `${command[0]} ended within ${flags.settle} ms, before it could be migrated; see --settle.`,
      )
    }
    const result = await migrateInLab(lab, pid, migrationOptions(flags), {
      onStatus: progress.update,
      signal,
    })
    progress.stop()
    conclude(result, flags.report, process.stderr)
    const ended = result.destination?.workload?.exit
    if (ended !== undefined) return ended
    process.stderr.write(`Waiting for ${command[0]} to end.\n`)
    return await waitForExit(lab, 'b', result.id, signal)
  } finally {
    progress.stop()
    process.stdout.write(readFileSync(output))
  }
}
