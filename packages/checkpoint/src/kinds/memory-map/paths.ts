import { statSync } from 'node:fs'
import { addressOf } from '@pageferry/base'
import type { Problem } from '../../problems.js'
import { type MapsLine, readMaps } from '../../proc/maps.js'
import { leadsTo } from '../leads-to.js'

/**
 * Mapped files whose path leads to another file: one is mounted over it, for example. The destination opens the path.
 *
 * Both are looked at through a path, as descriptors are: on overlayfs and Btrfs /proc/PID/maps shows other device numbers
 * than stat(2). Preflight only: a library has five areas, and each file takes two calls.
 */
export function checkMappedPaths(pid: number): Problem[] {
  const files = new Map<string, MapsLine>()
  for (const line of readMaps(pid)) {
    const hasPath = line.name.startsWith('/') && !line.name.endsWith(' (deleted)')
    if (hasPath && !files.has(line.name)) files.set(line.name, line)
  }
  return [...files.values()]
    .filter((line) => leadsElsewhere(pid, line))
    .map(({ name }) => ({
      what: `the mapped file ${name}`,
      reason:
        'its path leads to another file: another file system is mounted over it, or it was exchanged just now',
    }))
}

function leadsElsewhere(pid: number, { name, start, nrPages }: MapsLine): boolean {
  const link = `/proc/${pid}/map_files/${addressOf(start).toString(16)}-${addressOf(start + nrPages).toString(16)}`
  const mapped = statSync(link, { bigint: true, throwIfNoEntry: false })
  // Undefined: the area has gone or changed since.
  return mapped !== undefined && !leadsTo(name, mapped)
}
