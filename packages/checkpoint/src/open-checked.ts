import { type BigIntStats, closeSync, fstatSync } from 'node:fs'
import { fds } from '@pageferry/kernel'

const { O_PATH, O_CLOEXEC } = fds

/**
 * Opens a file of the workload's choice only if it is the one that was meant. The file at `path` may be exchanged at any
 * moment, and opening acts: a FIFO blocks, a device may do anything. O_PATH does nothing yet.
 *
 * @returns null when it is another one
 */
export function openChecked(
  path: string,
  flags: number,
  isRight: (stat: BigIntStats) => boolean,
): number | null {
  const found = fds.open(path, O_PATH | O_CLOEXEC)
  try {
    if (!isRight(fstatSync(found, { bigint: true }))) return null
    return fds.open(`/proc/self/fd/${found}`, flags | O_CLOEXEC)
  } finally {
    closeSync(found)
  }
}
