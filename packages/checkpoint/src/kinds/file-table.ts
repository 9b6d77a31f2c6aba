import { PageferryError } from '@pageferry/base'
import {
  FdType,
  type FileEntry,
  type RegFileEntry,
  type RemapFilePathEntry,
  RemapType,
} from '@pageferry/images'
import { noOwner } from './descriptors/signal-owner.js'

/**
 * Open file descriptions and mapped files of a process, numbered as in CRIU's files.img. Ids stay the same over all
 * rounds: by them the destination recognises that an area still maps the same file.
 */
export class FileTable {
  readonly #mapped = new Map<string, RegFileEntry>()
  readonly #shared = new Map<string, number>()
  /** By their identity; of files without a name. */
  readonly #ghosts = new Map<string, number>()
  readonly #mappedGhosts = new Map<number, string>()
  #open: FileEntry[] = []
  #openGhosts = new Map<number, string>()
  #lastId = 0
  #lastGhostId = 0

  nextId(): number {
    return ++this.#lastId
  }

  /**
   * Id of a mapped file. `backingId` is its identity ("device:inode"); the path may change.
   *
   * @param ghost identity of one that has no name any more
   */
  mappedFile(path: string, backingId: string, flags: number, ghost?: string): number {
    const key = `${flags}:${backingId}`
    const known = this.#mapped.get(key)
    if (known !== undefined) {
      known.name = path
      return known.id
    }
    const id = this.nextId()
    this.#mapped.set(key, { id, flags, pos: 0n, fown: noOwner, name: path })
    if (ghost !== undefined) this.#mappedGhosts.set(id, ghost)
    return id
  }

  /** Id of a shared anonymous object. */
  sharedMemory(backingId: string): number {
    const known = this.#shared.get(backingId) ?? this.nextId()
    this.#shared.set(backingId, known)
    return known
  }

  /** Descriptors of a process change freely between rounds, so only those of the dump are kept. */
  forgetOpenFiles(): void {
    this.#open = []
    this.#openGhosts = new Map()
  }

  addOpen(entry: FileEntry): void {
    this.#open.push(entry)
  }

  /** The open file with this id is one that has no name any more. */
  noteOpenGhost(id: number, identity: string): void {
    this.#openGhosts.set(id, identity)
  }

  /** Id of a file without a name, as frames and remap-fpath.img call it. */
  ghostId(identity: string): number {
    const known = this.#ghosts.get(identity) ?? ++this.#lastGhostId
    this.#ghosts.set(identity, known)
    return known
  }

  /** It is gone: another file may have its inode from now on. */
  forgetGhost(identity: string): void {
    this.#ghosts.delete(identity)
    for (const [key, { id }] of this.#mapped) {
      if (this.#mappedGhosts.get(id) !== identity) continue
      this.#mapped.delete(key)
      this.#mappedGhosts.delete(id)
    }
  }

  entries(): FileEntry[] {
    const mapped = [...this.#mapped.values()].map((reg): FileEntry => ({ type: FdType.REG, id: reg.id, reg }))
    return [...mapped, ...this.#open]
  }

  /** Which files of `entries` have no name any more. */
  remaps(): RemapFilePathEntry[] {
    return [...this.#mappedGhosts, ...this.#openGhosts].map(([origId, identity]) => ({
      origId,
      remapId: this.ghostId(identity),
      remapType: RemapType.GHOST,
    }))
  }
}

export function regularFilePath(file: FileEntry): string | undefined {
  return file.reg?.name
}

/** The path of a file that another entry refers to by id. */
export function requiredPath(files: FileEntry[], id: number, what: string): string {
  const path = files.find((file) => file.id === id)?.reg?.name
  if (path === undefined) throw new PageferryError('PROTOCOL', `${what} refers to the unknown file ${id}`)
  return path
}
