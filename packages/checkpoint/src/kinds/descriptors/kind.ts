import type { FdType, FileEntry, ImageContent, ImageKindName } from '@pageferry/images'
import type { FdInfo } from '../../proc/fdinfo.js'
import type { SkeletonProcess } from '../../remote/skeleton-process.js'

/*
 * A kind of open file: a regular file, a pipe, an eventfd. Both halves of it stand in one file of this directory, one below
 * the other, because each undoes what the other does.
 *
 * The kernel has three layers. A descriptor is a number in the table of a process. It refers to an open file description,
 * which dup(2), fork(2) and SCM_RIGHTS share. The description refers to an object: two descriptions are the two ends of a
 * pipe. A kind speaks of descriptions only. Numbers, close-on-exec and the question which descriptors share a description
 * are the same for every kind: table.ts and shared.ts answer them.
 *
 * The destination opens every description in the restoring process, then hands them to the skeleton. Some need others
 * to be there. So each of these stages is done for all files before the next one begins:
 *
 *   create      the object and its description exist (a pipe, an eventfd, a socket)
 *   connect     a description meets its peers (two sockets, an epoll instance and its targets)
 *   fill        contents go in (the bytes of a pipe)
 *   queue       descriptors that travel inside of others go in (SCM_RIGHTS on its way)
 *   afterwards  in the skeleton, once every number is in its place (a file lock belongs to the process that takes it)
 *
 * To add a kind: its file here, its message in proto/criu, its line in registry.ts, and a workload in test/workloads that
 * checks itself. Nothing else names it.
 */

/** The field of a FileEntry that holds the message of a kind. */
type FileField = Exclude<keyof FileEntry, 'type' | 'id'>
export type FileMessage<F extends FileField = FileField> = NonNullable<FileEntry[F]>

/** An image that holds any number of messages, for what does not fit into a FileEntry. */
export type ListImage = {
  [K in ImageKindName]: ImageContent<K> extends readonly unknown[] ? K : never
}[ImageKindName]
export type ListMessage<K extends ListImage> =
  ImageContent<K> extends readonly (infer M extends object)[] ? M : never

/** An open file description of the workload. */
export interface OpenFile {
  /** Of the lowest descriptor that refers to it. */
  info: FdInfo
  /** A duplicate of that descriptor in this process. It shares offset, flags and contents with the workload's. */
  copy: number
}

/** What a kind knows of all others when it dumps. */
export interface DumpTree {
  /** Every descriptor of the workload. */
  readonly descriptors: readonly FdInfo[]
  /** True for the first caller with this key: what several descriptions share is dumped once. */
  first(key: string): boolean
  add<K extends ListImage>(image: K, message: ListMessage<K>): void
}

/** What a kind knows of all others when it restores. */
export interface RestoreTree {
  /** Thread ids on this host by those on the source. */
  readonly tids: ReadonlyMap<number, number>
  /** Messages of an image of the kind's own. */
  messages<K extends ListImage>(image: K): ListMessage<K>[]
  /** What several descriptions share, such as a pipe: made for the first that asks. */
  shared<T>(key: string, make: () => T): T
  /** Closes the descriptor when all files have been handed over, or when that has failed. */
  own(fd: number): number
  /** The descriptor here of another file of the image, from the stage connect on. */
  descriptorOf(id: number): number
}

export interface FdKind<F extends FileField = FileField> {
  /** As an operator calls it. */
  readonly name: string
  readonly type: FdType
  readonly field: F
  /** Images of its own, beside files.img. They are written even if empty: a missing one is an error of the peer. */
  readonly images?: readonly ListImage[]

  /** Whether this kind is responsible. The first kind of the registry that says so is. */
  matches(info: FdInfo): boolean
  /** Why this one cannot be moved; null: it can. Before the migration and again in the freeze. */
  check(file: OpenFile, descriptors: readonly FdInfo[]): string | null
  /** Whether the kernel may write the workload's memory through it without a tracker noticing. */
  escapesTracking?(info: FdInfo): boolean
  /** A path that must lead to the same file on the destination. */
  neededPath?(info: FdInfo): string

  dump(file: OpenFile, id: number, tree: DumpTree): FileMessage<F>
  /** @returns a descriptor in this process; the caller closes it. The entry is a peer's, only its form was checked. */
  create(entry: FileMessage<F>, tree: RestoreTree): number
  connect?(entry: FileMessage<F>, fd: number, tree: RestoreTree): void
  fill?(entry: FileMessage<F>, fd: number, tree: RestoreTree): void
  queue?(entry: FileMessage<F>, fd: number, tree: RestoreTree): void
  /** `fd` is the lowest number that it has in the skeleton. Queues its calls there. */
  afterwards?(entry: FileMessage<F>, fd: number, skeleton: SkeletonProcess): void
}
