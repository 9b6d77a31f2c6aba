import { setTimeout as sleep } from 'node:timers/promises'

export interface Patience {
  /** Default 10,000: a thousand times as long as most conditions take, for a busy machine. */
  timeoutMs?: number
  /** Default 5. Asking a service costs processor time that a migration needs as well. */
  everyMs?: number
}

/**
 * Waits until `check` returns a value other than undefined, null and false, and returns that.
 * @param what the condition, for the error of a test that waits in vain
 */
export async function eventually<T>(
  what: string | (() => string),
  check: () => T | Promise<T>,
  { timeoutMs = 10_000, everyMs = 5 }: Patience = {},
): Promise<NonNullable<T>> {
  const deadline = Date.now() + timeoutMs
  for (;;) {
    const value = await check()
    if (value !== undefined && value !== null && value !== false) return value as NonNullable<T>
    if (Date.now() > deadline) {
      throw new Error(`waited ${timeoutMs} ms in vain: ${typeof what === 'string' ? what : what()}`)
    }
    await sleep(everyMs)
  }
}
