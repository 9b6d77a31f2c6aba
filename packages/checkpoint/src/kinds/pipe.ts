import { closeSync, readSync, writeSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import type { PipeData, PipeEntry } from '@pageferry/images'
import { fds } from '@pageferry/kernel'
import type { FdInfo } from '../proc/fdinfo.js'
import { noOwner } from './file-table.js'

/** Pipes whose two ends are both in the process, with their contents (pipe(7)). */

const { O_ACCMODE, O_CLOEXEC, O_NONBLOCK, O_RDONLY, O_WRONLY } = fds

export function pipeIdOf(info: FdInfo): number | null {
  const m = /^pipe:\[(\d+)\]$/.exec(info.target)
  return m === null ? null : Number(m[1])
}

/** A description that was opened O_RDWR through /proc/self/fd is both ends at once. */
export function isReadEnd(flags: number): boolean {
  return (flags & O_ACCMODE) !== O_WRONLY
}

export function isWriteEnd(flags: number): boolean {
  return (flags & O_ACCMODE) !== O_RDONLY
}

export function dumpPipeEnd(info: FdInfo, id: number, pipeId: number): PipeEntry {
  return { id, pipeId, flags: info.flags & ~O_CLOEXEC, fown: noOwner }
}

/** Copies what lies in a pipe without taking it out: tee(2) into a pipe of our own. `readEnd` is our duplicate. */
export function dumpPipeData(readEnd: number, pipeId: number): PipeData {
  const size = fds.fcntl(readEnd, fds.F_GETPIPE_SZ)
  const [copyRead, copyWrite] = fds.pipe2(O_CLOEXEC | O_NONBLOCK)
  try {
    fds.fcntl(copyWrite, fds.F_SETPIPE_SZ, size)
    let bytes = 0
    try {
      bytes = fds.tee(readEnd, copyWrite, size)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
    }
    const data = Buffer.alloc(bytes)
    for (let at = 0; at < bytes; ) at += readSync(copyRead, data, at, bytes - at, null)
    return { pipeId, bytes, size, data }
  } finally {
    closeSync(copyRead)
    closeSync(copyWrite)
  }
}

/** Builds every pipe of the image; the descriptor of each open file description, by file id. */
export function restorePipes(entries: PipeEntry[], contents: PipeData[]): Map<number, number> {
  const descriptors = new Map<number, number>()
  for (const pipeId of new Set(entries.map((entry) => entry.pipeId))) {
    const [readEnd, writeEnd] = fds.pipe2(O_CLOEXEC)
    const content = contents.find((data) => data.pipeId === pipeId)
    if (content?.size !== undefined) fds.fcntl(writeEnd, fds.F_SETPIPE_SZ, content.size)
    if (content !== undefined && content.bytes > 0) {
      fds.fcntl(writeEnd, fds.F_SETFL, O_NONBLOCK)
      if (writeSync(writeEnd, content.data) !== content.bytes) {
        throw new PageferryError('REFUSED', `a pipe with ${content.bytes} bytes cannot be filled again`)
      }
    }
    // Further descriptions of an end come from opening it anew through /proc, as in the workload.
    let freeRead: number | null = readEnd
    let freeWrite: number | null = writeEnd
    for (const entry of entries.filter((each) => each.pipeId === pipeId)) {
      const access = entry.flags & O_ACCMODE
      let end: number
      if (access === O_RDONLY && freeRead !== null) {
        end = freeRead
        freeRead = null
      } else if (access === O_WRONLY && freeWrite !== null) {
        end = freeWrite
        freeWrite = null
      } else end = fds.open(`/proc/self/fd/${readEnd}`, access | O_CLOEXEC)
      fds.fcntl(end, fds.F_SETFL, entry.flags & ~O_ACCMODE)
      descriptors.set(entry.id, end)
    }
    // An end that nobody has any more is closed: readers must see end of file, writers EPIPE.
    if (freeRead !== null) closeSync(freeRead)
    if (freeWrite !== null) closeSync(freeWrite)
  }
  return descriptors
}
