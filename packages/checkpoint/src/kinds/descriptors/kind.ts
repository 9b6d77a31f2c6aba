import type { FdType, FileEntry, ImageContent, ImageKindName } from '@pageferry/images'
import type { FdInfo } from '../../proc/fdinfo.js'
import type { SkeletonProcess } from '../../remote/skeleton-process.js'

/*
 * A kind of open file: a regular file, a pipe, an eventfd. Its dump and its restore are in one file of this directory,
 * one below the other, because each undoes the other.
 *
 * The kernel has three layers. A descriptor is a number in the table of a process. It refers to an open file
 * description, which dup(2), fork(2) and SCM_RIGHTS share. The description refers to an object: two descriptions are
 * the two ends of a pipe. A kind deals with descriptions only. Numbers, close-on-exec and the sharing of descriptions
 * are the same for every kind: table.ts and shared.ts handle them.
 *
 * The destination opens every description in the restoring process, then hands them to the skeleton. Some need others
 * to exist already. So each of these stages is done for all files before the next one begins:
 *
 *   create      the object and its description exist (a pipe, an eventfd, a socket)
 *   connect     a description meets its peers (two sockets, an epoll instance and its targets)
 *   fill        contents go in (the bytes of a pipe)
 *   queue       descriptors that travel inside of others go in (SCM_RIGHTS in flight)
 *   afterwards  in the skeleton, once every number is in its place
 *
 * To add a kind: add its file here, its message in proto/criu, its line in registry.ts, and a workload in
 * test/workloads that checks itself. No other file names a kind.
 */

/** The field of a FileEntry that holds the message of a kind. */
type FileField = Exclude<keyof FileEntry, 'type' | 'id'>
export type FileMessage<F extends FileField = FileField> = NonNullable<FileEntry[F]>

/** An image that holds any number of messages, for state that does not fit into a FileEntry. */
export type ListImage = {
  [K in ImageKindName]: ImageContent<K> extends readonly unknown[] ? K : never
}[ImageKindName]
export type ListMessage<K extends ListImage> =
  ImageContent<K> extends readonly (infer M extends object)[] ? M : never

/** An open file description of the workload. */
export interface OpenFile {
  /** State of the lowest descriptor that refers to it. */
  info: FdInfo
  /** A duplicate of that descriptor in this process. It shares offset, flags and contents with the workload's. */
  copy: number
}

/** What a kind may use of the whole workload when it dumps. */
export interface DumpTree {
  /** The workload's CLOCK_MONOTONIC minus ours. */
  readonly monotonicOffsetNs: bigint
  /** Every descriptor of the workload. */
  readonly descriptors: readonly FdInfo[]
  /** Returns true for the first caller with this key, so that shared objects are dumped once. */
  first(key: string): boolean
  add<K extends ListImage>(image: K, message: ListMessage<K>): void
  /** The file with this id of ours has no name any more; `identity` as in kinds/ghosts. */
  noteGhost(id: number, identity: string): void
}

/** What a kind may use of the whole workload when it restores. */
export interface RestoreTree {
  /** Thread ids on this host, by those on the source. */
  readonly tids: ReadonlyMap<number, number>
  /** A new description of a file that has no name any more; undefined: the file with this id has one. */
  openGhost: OpenGhost
  /** Messages of an image of the kind's own. */
  messages<K extends ListImage>(image: K): ListMessage<K>[]
  /** An object that several descriptions share, such as a pipe: made by the first that asks. */
  shared<T>(key: string, make: () => T): T
  /** Closes the descriptor when all files have been handed over, or when that has failed. */
  own(fd: number): number
  /** Our descriptor of another file of the image, from the stage connect on. */
  descriptorOf(id: number): number
}

/**
 * @param id of the file in the images
 * @returns a descriptor in this process, which the caller closes
 */
export type OpenGhost = (id: number, flags: number) => number | undefined

export interface FdKind<F extends FileField = FileField> {
  /** Name for an operator. */
  readonly name: string
  readonly type: FdType
  readonly field: F
  /** Images of its own, beside files.img. They are written even if empty: a missing one is an error of the peer. */
  readonly images?: readonly ListImage[]

  /** Whether this kind handles the file. The first kind of the registry that matches is taken. */
  matches(info: FdInfo): boolean
  /** Why this file cannot be moved; null: it can. Called before the migration and again in the freeze. */
  check(file: OpenFile, descriptors: readonly FdInfo[]): string | null
  /** Whether the kernel may write the workload's memory through it without a tracker noticing. */
  escapesTracking?(info: FdInfo): boolean
  /**
   * What comes apart if a process outside of the workload has the file, too; undefined: nothing. `object` names a
   * kernel object that other descriptions reach as well. Without one only this description is meant.
   */
  outside?(info: FdInfo): { object?: string } | undefined
  /** A path that must lead to the same file on the destination. */
  neededPath?(info: FdInfo): string | undefined

  dump(file: OpenFile, id: number, tree: DumpTree): FileMessage<F>
  /**
   * @returns a descriptor in this process, which the caller closes. The entry comes from a peer; only its form was
   * checked.
   */
  create(entry: FileMessage<F>, tree: RestoreTree): number
  connect?(entry: FileMessage<F>, fd: number, tree: RestoreTree): void
  fill?(entry: FileMessage<F>, fd: number, tree: RestoreTree): void
  queue?(entry: FileMessage<F>, fd: number, tree: RestoreTree): void
  /** Queues calls in the skeleton. `fd` is the lowest number that the description has there. */
  afterwards?(entry: FileMessage<F>, fd: number, skeleton: SkeletonProcess): void
}
