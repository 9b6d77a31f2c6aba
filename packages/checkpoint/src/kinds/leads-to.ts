import { type BigIntStats, statSync } from 'node:fs'

/** Whether a path leads to this file. The destination opens the path. */
export function leadsTo(path: string, file: BigIntStats): boolean {
  const there = statSync(path, { bigint: true, throwIfNoEntry: false })
  return there !== undefined && there.dev === file.dev && there.ino === file.ino
}
