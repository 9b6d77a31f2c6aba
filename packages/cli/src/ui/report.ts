import { writeFileSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import { formatReport, type MigrationReport } from '@pageferry/migration'
import pc from 'picocolors'

export function writeReport(path: string, report: MigrationReport): void {
  try {
    writeFileSync(path, `${JSON.stringify(report, null, 2)}\n`)
  } catch (error) {
    // The migration is over and must not look failed. The user still learns why the file is missing.
    const reason = error instanceof Error ? error.message : String(error)
    process.stderr.write(`pageferry: the report could not be written: ${reason}\n`)
  }
}

/** Checks before a migration, and not after it, that the report can be written. */
export function requireWritable(path: string | undefined): void {
  if (path === undefined) return
  try {
    writeFileSync(path, '', { flag: 'a' })
  } catch (error) {
    const { message } = error as Error
    throw new PageferryError('BAD_REQUEST', `The report cannot be written to ${path}: ${message}`)
  }
}

/** The first column of formatReport's lines. */
const labelWidth = 12

export function printReport(report: MigrationReport, out: NodeJS.WritableStream): void {
  const [title, ...lines] = formatReport(report)
  out.write(`\n${pc.bold(title)}\n`)
  for (const line of lines) out.write(`${pc.cyan(line.slice(0, labelWidth))}${line.slice(labelWidth)}\n`)
  out.write('\n')
}
