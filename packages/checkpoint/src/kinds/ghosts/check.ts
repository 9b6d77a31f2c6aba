import { closeSync, fstatSync, statSync } from 'node:fs'
import { MiB } from '@pageferry/base'
import { fds } from '@pageferry/kernel'
import type { Problem } from '../../problems.js'
import { readPids } from '../../proc/tasks.js'
import { isText } from '../../proc/text.js'
import { dataBytesOf } from './extents.js'
import { findGhosts, type Ghost, openGhost } from './find.js'
import { maxGhosts } from './ghost-files.js'

/** What stands in the way of files that have no name any more. */

/** Their contents travel before and within the freeze: 64 MiB take half a second at 1 Gbit/s, if all is written meanwhile. */
export const defaultGhostBytes = 64 * MiB

/** Unit of st_blocks (stat(2)). */
const statBlockBytes = 512

/** @param limitBytes of all together, without holes */
export function checkGhosts(pid: number, limitBytes: number): Problem[] {
  const ghosts = findGhosts(pid)
  return [...checkNames(ghosts), ...checkSize(ghosts, limitBytes), ...checkOthers(pid, ghosts)]
}

function checkNames(ghosts: readonly Ghost[]): Problem[] {
  const odd = ghosts.filter(({ path }) => !isText(path))
  return odd.map(({ path }) => ({
    what: `the deleted file ${path}`,
    reason: 'its last path is not valid UTF-8, which the protocol requires',
  }))
}

function checkSize(ghosts: readonly Ghost[], limitBytes: number): Problem[] {
  if (ghosts.length > maxGhosts) {
    return [{ what: `${ghosts.length} deleted files`, reason: `at most ${maxGhosts} are moved` }]
  }
  const sizes = ghosts.map((ghost) => ({ path: ghost.path, bytes: dataOf(ghost, limitBytes) }))
  const total = sizes.reduce((sum, { bytes }) => sum + bytes, 0)
  if (total <= limitBytes) return []
  const largest = sizes.reduce((a, b) => (b.bytes > a.bytes ? b : a))
  const others = sizes.length === 1 ? '' : ` and ${sizes.length - 1} more`
  return [
    {
      what: `the deleted file ${largest.path}${others}`,
      reason: `${sizes.length === 1 ? 'it holds' : 'they hold'} ${total} bytes, the limit is ${limitBytes}: --ghost-limit`,
    },
  ]
}

/** Above the limit it is an estimate. */
function dataOf(ghost: Ghost, limitBytes: number): number {
  if (ghost.isDirectory) return 0
  const fd = openGhost(ghost)
  if (fd === null) return 0
  try {
    const { size, blocks } = fstatSync(fd)
    const bytes = dataBytesOf(fd, size, limitBytes)
    return bytes > limitBytes ? Math.max(bytes, blocks * statBlockBytes) : bytes
  } finally {
    closeSync(fd)
  }
}

/**
 * A deleted file that is also another process's becomes two files. That is noticed where one of the two writes; a library
 * that a package upgrade has replaced is mapped by many.
 */
function checkOthers(pid: number, ghosts: readonly Ghost[]): Problem[] {
  const files = new Map(ghosts.filter((ghost) => !ghost.isDirectory).map((ghost) => [ghost.identity, ghost]))
  if (files.size === 0) return []
  const problems: Problem[] = []
  for (const other of readPids()) {
    if (other === pid || other === process.pid) continue
    for (const theirs of ghostsOf(other)) {
      const ours = files.get(theirs.identity)
      if (ours === undefined || !(ours.isWritten || theirs.isWritten)) continue
      problems.push({
        what: `the deleted file ${ours.path}`,
        reason: `process ${other} has it, too, and would not see what is written after the move`,
      })
    }
  }
  return problems
}

/** What a file without a name loses in a move; `fd` refers to it. */
export function ghostLosses(path: string, fd: number): Problem[] {
  const names = attributesOf(fd)
  if (names.length === 0) return []
  const reason = `it comes without its extended attributes (${names.join(', ')})`
  return [{ what: `the deleted file ${path}`, reason }]
}

function attributesOf(fd: number): string[] {
  try {
    return fds.listXattr(fd)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EOPNOTSUPP') return []
    throw error
  }
}

/** Of a process that may be gone, a kernel thread, or not ours to see. */
function ghostsOf(pid: number): Ghost[] {
  try {
    statSync(`/proc/${pid}/exe`)
    return findGhosts(pid)
  } catch {
    return []
  }
}
