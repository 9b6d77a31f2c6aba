import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { PageferryError } from '@pageferry/base'

/**
 * The file that a keeper leaves when its child has ended (programs/keeper.c writes it). Imported by itself
 * (`@pageferry/kernel/exit-status`) it loads no addon: a service reads it, and services make no system calls.
 */

const fileName = 'exit-status'

/** How a process ended: `value` is its exit code or the number of the signal (wait(2)). */
export interface ExitStatus {
  kind: 'exited' | 'signaled'
  value: number
}

/**
 * Reads what the keeper in `dir` wrote. Undefined while its child runs, and if there never was one.
 * @throws INTERNAL when the file is damaged; the errors of reading it
 */
export function readExitStatus(dir: string): ExitStatus | undefined {
  let text: string
  try {
    text = readFileSync(join(dir, fileName), 'latin1')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
  const match = /^(exited|signaled) (\d+)\n$/.exec(text)
  if (!match) throw new PageferryError('INTERNAL', `${dir}/${fileName} is damaged`)
  return { kind: match[1] as ExitStatus['kind'], value: Number(match[2]) }
}
