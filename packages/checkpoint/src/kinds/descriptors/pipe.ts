import { closeSync, readSync, writeSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import { FdType, type PipeData, type PipeEntry } from '@pageferry/images'
import { fds } from '@pageferry/kernel'
import type { FdInfo } from '../../proc/fdinfo.js'
import type { FdKind, RestoreTree } from './kind.js'
import { dumpSignal } from './signal-owner.js'

/** Pipes whose two ends are both in the workload, with their contents (pipe(7)). */

const { O_ACCMODE, O_RDONLY, O_WRONLY, O_CLOEXEC, O_NONBLOCK, O_DIRECT } = fds

/** The number in "pipe:[123]", which is the same for both ends; undefined for other files. */
function pipeIdOf({ target }: FdInfo): number | undefined {
  const id = /^pipe:\[(\d+)\]$/.exec(target)?.[1]
  return id === undefined ? undefined : Number(id)
}

/** A description that was opened O_RDWR through /proc/self/fd is both ends at once. */
function isReadEnd({ flags }: FdInfo): boolean {
  return (flags & O_ACCMODE) !== O_WRONLY
}

function isWriteEnd({ flags }: FdInfo): boolean {
  return (flags & O_ACCMODE) !== O_RDONLY
}

export const pipe: FdKind<'pipe'> = {
  name: 'pipe',
  type: FdType.PIPE,
  field: 'pipe',
  images: ['pipes-data'],

  matches: (info) => pipeIdOf(info) !== undefined,

  outside: ({ target }) => ({ object: target }),

  check({ info }, descriptors) {
    const ends = descriptors.filter(({ target }) => target === info.target)
    if (!ends.some(isWriteEnd) || !ends.some(isReadEnd)) {
      return 'only one end of the pipe is in the process: redirect it to a file'
    }
    // For a pipe this flag means packets (pipe(2)): its bytes alone would lose their borders.
    return (info.flags & O_DIRECT) !== 0 ? 'a pipe in packet mode is not moved' : null
  },

  dump({ info, copy }, id, tree): PipeEntry {
    const pipeId = pipeIdOf(info) as number
    if (isReadEnd(info) && tree.first(info.target)) tree.add('pipes-data', dumpContents(copy, pipeId))
    return { id, pipeId, flags: info.flags & ~O_CLOEXEC, fown: dumpSignal(info, copy) }
  },

  create({ pipeId, flags }, tree) {
    const ends = pipeOf(pipeId, tree)
    const fd = tree.own(takeEnd(ends, flags & O_ACCMODE))
    fds.fcntl(fd, fds.F_SETFL, flags & ~O_ACCMODE)
    return fd
  },

  fill({ pipeId }, _fd, tree) {
    const ends = pipeOf(pipeId, tree)
    const { contents } = ends
    ends.contents = undefined
    if (contents === undefined || contents.bytes === 0) return
    // A description of our own that never blocks. If the contents do not fit, that is an error of the peer and no
    // reason to wait.
    const end = fds.open(`/proc/self/fd/${ends.write}`, O_WRONLY | O_NONBLOCK | O_CLOEXEC)
    try {
      if (writeSync(end, contents.data) !== contents.bytes) throw cannotFill(contents)
    } catch (error) {
      throw (error as { code?: string }).code === 'EAGAIN' ? cannotFill(contents) : error
    } finally {
      closeSync(end)
    }
  },
}

/** Copies the contents of a pipe without consuming them: tee(2) into a pipe of our own. `readEnd` is our duplicate. */
function dumpContents(readEnd: number, pipeId: number): PipeData {
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

/**
 * A pipe that is rebuilt here. Its ends close with the tree's descriptors: readers must see end of file, writers EPIPE.
 */
interface Ends {
  readonly read: number
  readonly write: number
  /** Ends that no description of the workload has taken yet. */
  readonly free: { [O_RDONLY]?: number; [O_WRONLY]?: number }
  /** Contents until they are written into the pipe. */
  contents: PipeData | undefined
}

function pipeOf(pipeId: number, tree: RestoreTree): Ends {
  return tree.shared(`pipe ${pipeId}`, () => {
    const all = tree.shared(
      'contents of pipes',
      () => new Map(tree.messages('pipes-data').map((each) => [each.pipeId, each])),
    )
    const contents = all.get(pipeId)
    const [read, write] = fds.pipe2(O_CLOEXEC)
    tree.own(read)
    tree.own(write)
    if (contents?.size !== undefined) fds.fcntl(write, fds.F_SETPIPE_SZ, contents.size)
    return { read, write, free: { [O_RDONLY]: read, [O_WRONLY]: write }, contents }
  })
}

/** Further descriptions of an end are opened through /proc, as the workload did. */
function takeEnd(ends: Ends, access: number): number {
  if (access === O_RDONLY || access === O_WRONLY) {
    const free = ends.free[access]
    delete ends.free[access]
    if (free !== undefined) return free
  }
  return fds.open(`/proc/self/fd/${ends.read}`, access | O_CLOEXEC)
}

function cannotFill({ bytes }: PipeData): PageferryError {
  return new PageferryError('REFUSED', `a pipe with ${bytes} bytes cannot be filled again`)
}
