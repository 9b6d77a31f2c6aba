import { ERROR_CODES, isKernelError, PageferryError, toErrorInfo } from '@pageferry/base'
import { CommanderError } from 'commander'
import pc from 'picocolors'

/** The user pressed Ctrl-C, or asked with a signal, and everything has been undone. */
export class Interrupted extends Error {
  readonly signal: 'SIGINT' | 'SIGTERM'

  constructor(signal: 'SIGINT' | 'SIGTERM', message: string) {
    super(message)
    this.signal = signal
  }
}

/** A command that ends with a status of its own, for example that of the workload. Prints nothing. */
export class ExitWith extends Error {
  readonly status: number

  constructor(status: number) {
    super(`exit status ${status}`)
    this.status = status
  }
}

/**
 * The exit status: 2 wrong usage, 3 refused before anything was touched, 4 failed with the workload on the source; see
 * ERROR_CODES. 5: see unprovenStatus.
 */
export function exitStatus(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2
  if (error instanceof ExitWith) return error.status
  if (error instanceof Interrupted) return error.signal === 'SIGINT' ? 130 : 143
  return ERROR_CODES[toErrorInfo(error).code].exit
}

/** It runs on the destination, but --verify could not prove its memory: the original is kept on the source. */
export const unprovenStatus = 5

/**
 * The exit status of a migration that has begun, which excludes wrong usage. Once the workload was touched the failure is
 * no refusal either, even if the code means one: EPERM in the restore is NOT_PERMITTED, too.
 */
export function failureStatus(error: unknown, touched: boolean): 3 | 4 {
  return exitStatus(error) === 3 && !touched ? 3 : 4
}

interface Problem {
  what: string
  reason: string
}

/** The problems that preflight found, if the error carries them. */
function problemsOf(error: PageferryError): Problem[] {
  const { problems } = error.details
  if (!Array.isArray(problems)) return []
  return problems.filter(
    (problem): problem is Problem => typeof problem?.what === 'string' && typeof problem?.reason === 'string',
  )
}

function formatProblems(problems: Problem[]): string {
  return problems.map(({ what, reason }) => `  - ${what}: ${reason}\n`).join('')
}

/** Prints one sentence, then the problems of a refusal as a list. A stack only for a defect. */
export function printError(error: unknown): void {
  if (error instanceof ExitWith) return
  const expected = error instanceof PageferryError || error instanceof Interrupted || isKernelError(error)
  const stack = !expected && error instanceof Error ? error.stack : undefined
  process.stderr.write(`${pc.red('pageferry:')} ${stack ?? toErrorInfo(error).message}\n`)
  if (error instanceof PageferryError) {
    const unsaid = problemsOf(error).filter(({ reason }) => !error.message.includes(reason))
    process.stderr.write(formatProblems(unsaid))
  }
}
