import { closeSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import { type FdinfoEntry, FdType, type FileEntry } from '@pageferry/images'
import { fds } from '@pageferry/kernel'
import type { FdInfo } from '../../proc/fdinfo.js'
import type { SkeletonProcess } from '../../remote/skeleton-process.js'
import type { FileTable } from '../file-table.js'
import { problemOf } from './check.js'
import { restoreLocks } from './file-locks.js'
import type { DumpTree, FdKind, FileMessage, ListImage, OpenGhost, RestoreTree } from './kind.js'
import { kernelNameOf } from './names.js'
import { fdKinds, kindOf } from './registry.js'
import { SharedFiles } from './shared.js'
import { restoreSignal } from './signal-owner.js'

/** The open file descriptions of a workload. table.ts handles the numbers that refer to them. */

type ListMessages = { [K in ListImage]?: object[] }

export interface DumpedFile {
  id: number
  type: FdType
}

/** A process and its descriptors, read while it stands still. */
export interface DescriptorsOf {
  pid: number
  pidfd: number
  infos: readonly FdInfo[]
}

/** Dumps each description once, however many descriptors of how many processes refer to it. */
export class DumpedFiles {
  readonly #files: FileTable
  readonly #shared = new SharedFiles<DumpedFile>()
  readonly #messages: ListMessages = {}
  readonly #tree: DumpTree

  /**
   * @param descriptors of all processes
   * @param monotonicOffsetNs the workload's CLOCK_MONOTONIC minus ours
   */
  constructor(
    files: FileTable,
    descriptors: readonly FdInfo[],
    monotonicOffsetNs: bigint,
    kinds: readonly FdKind[] = fdKinds,
  ) {
    this.#files = files
    for (const image of kinds.flatMap(({ images = [] }) => images)) this.#messages[image] = []
    const seen = new Set<string>()
    this.#tree = {
      monotonicOffsetNs,
      descriptors,
      first: (key) => !seen.has(key) && seen.add(key).size > 0,
      add: (image, message) => this.#messages[image]?.push(message),
      noteGhost: (id, identity) => files.noteOpenGhost(id, identity),
    }
  }

  /** @throws WORKLOAD_CHANGED for a file that was opened after the preflight and cannot be moved */
  get({ pid, pidfd }: DescriptorsOf, info: FdInfo): DumpedFile {
    return this.#shared.get({ pid, info }, () => this.#dump(pidfd, info))
  }

  /** The images of single kinds, beside files.img. */
  get images(): [ListImage, object[]][] {
    return Object.entries(this.#messages) as [ListImage, object[]][]
  }

  #dump(pidfd: number, info: FdInfo): DumpedFile {
    const copy = fds.pidfdGetfd(pidfd, info.fd)
    try {
      const reason = problemOf({ info, copy }, this.#tree.descriptors)
      const kind = kindOf(info)
      if (reason !== null || kind === undefined) {
        const what = `descriptor ${info.fd} (${kind?.name ?? kernelNameOf(info)})`
        throw new PageferryError('WORKLOAD_CHANGED', `${what} cannot be moved: ${reason}`)
      }
      const id = this.#files.nextId()
      const message = kind.dump({ info, copy }, id, this.#tree)
      this.#files.addOpen({ type: kind.type, id, [kind.field]: message })
      return { id, type: kind.type }
    } finally {
      closeSync(copy)
    }
  }
}

export interface FileImages {
  files(): FileEntry[]
  /** Messages of one kind's own image. */
  messages: RestoreTree['messages']
}

/** The stages after create, in their order. */
const laterStages = ['connect', 'fill', 'queue'] as const

interface OpenedFile {
  kind: FdKind
  message: FileMessage
  fd: number
}

export interface OpenedFilesOptions {
  kinds?: readonly FdKind[]
  /** Default: every file has a name. */
  openGhost?: OpenGhost
}

/** Opens descriptions again, in this process. */
export class OpenedFiles {
  readonly #opened = new Map<number, OpenedFile>()
  readonly #owned = new Set<number>()
  readonly #shared = new Map<string, unknown>()
  readonly #tree: RestoreTree

  /** @param ids of the descriptions that a descriptor refers to: the others of the table are mapped files */
  constructor(
    ids: ReadonlySet<number>,
    images: FileImages,
    tids: ReadonlyMap<number, number>,
    { kinds = fdKinds, openGhost = () => undefined }: OpenedFilesOptions = {},
  ) {
    const tree: RestoreTree = {
      tids,
      openGhost,
      messages: (image) => images.messages(image),
      shared: (key, make) => this.#sharedOf(key, make),
      own: (fd) => {
        this.#owned.add(fd)
        return fd
      },
      descriptorOf: (id) => this.get(id).fd,
    }
    this.#tree = tree
    try {
      const entries = new Map(images.files().map((file) => [file.id, file]))
      for (const id of ids) {
        const { kind, message } = kindOfEntry(id, entries.get(id), kinds)
        const fd = tree.own(kind.create(message, tree))
        restoreSignal(fd, message.fown)
        this.#opened.set(id, { kind, message, fd })
      }
      for (const stage of laterStages) {
        for (const { kind, message, fd } of this.#opened.values()) kind[stage]?.(message, fd, tree)
      }
    } catch (error) {
      this.close()
      throw error
    }
  }

  get(id: number): OpenedFile {
    const opened = this.#opened.get(id)
    if (opened === undefined) throw new PageferryError('PROTOCOL', `the file ${id} is unknown`)
    return opened
  }

  #sharedOf<T>(key: string, make: () => T): T {
    const known = this.#shared.get(key) as T | undefined
    if (known !== undefined) return known
    const made = make()
    this.#shared.set(key, made)
    return made
  }

  /** Runs the last stage, in a skeleton that has the descriptors of `fdinfo`. */
  finish(skeleton: SkeletonProcess, fdinfo: readonly FdinfoEntry[]): void {
    const lowest = new Map<number, number>()
    for (const { id, fd } of fdinfo) lowest.set(id, Math.min(fd, lowest.get(id) ?? fd))
    for (const [id, { kind, message }] of this.#opened) {
      kind.afterwards?.(message, lowest.get(id) as number, skeleton)
    }
    // Last of all: each close(2) of a file drops the POSIX locks that the process has on it (fcntl(2)).
    restoreLocks(skeleton, this.#tree.messages('filelocks'), this.#lockable(lowest))
  }

  /** Names of the regular files, by the lowest number that a description has. */
  #lockable(lowest: ReadonlyMap<number, number>): Map<number, string> {
    const names = new Map<number, string>()
    for (const [id, fd] of lowest) {
      const { kind, message } = this.get(id)
      if (kind.type === FdType.REG) names.set(fd, (message as FileMessage<'reg'>).name)
    }
    return names
  }

  /** Closes our descriptors; the skeletons keep theirs. */
  close(): void {
    for (const fd of this.#owned) closeSync(fd)
    this.#owned.clear()
  }
}

function kindOfEntry(
  id: number,
  entry: FileEntry | undefined,
  kinds: readonly FdKind[],
): { kind: FdKind; message: FileMessage } {
  const kind = kinds.find(({ type }) => type === entry?.type)
  const message = kind === undefined ? undefined : entry?.[kind.field]
  if (kind === undefined || message === undefined) {
    throw new PageferryError('PROTOCOL', `descriptors refer to the unknown file ${id}`)
  }
  return { kind, message }
}
