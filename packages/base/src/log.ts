import { type Logger, pino } from 'pino'

export type { Logger }

/**
 * JSON lines on standard error; standard output belongs to the command's result. Never log memory
 * contents, tokens, argv or environ of a workload: `redact` is the last line of defence, not the first.
 */
export function createLogger(name: string, level = process.env.PAGEFERRY_LOG ?? 'info'): Logger {
  return pino({ name, level, redact: ['token', '*.token', 'headers.authorization'] }, pino.destination(2))
}
