import { PageferryError } from '@pageferry/base'
import { FdType, type FileEntry, type RegFileEntry } from '@pageferry/images'
import { noOwner } from './descriptors/signal-owner.js'

/**
 * Open file descriptions and mapped files of a process, numbered as in CRIU's files.img. Ids stay the same over all
 * rounds: by them the destination recognises that an area still maps the same file.
 */
export class FileTable {
  readonly #mapped = new Map<string, RegFileEntry>()
  readonly #shared = new Map<string, number>()
  #open: FileEntry[] = []
  #lastId = 0

  nextId(): number {
    return ++this.#lastId
  }

  /** Id of a mapped file. `backingId` is its identity ("device:inode"); the path may change. */
  mappedFile(path: string, backingId: string, flags: number): number {
    const key = `${flags}:${backingId}`
    const known = this.#mapped.get(key)
    if (known !== undefined) {
      known.name = path
      return known.id
    }
    const id = this.nextId()
    this.#mapped.set(key, { id, flags, pos: 0n, fown: noOwner, name: path })
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
  }

  addOpen(entry: FileEntry): void {
    this.#open.push(entry)
  }

  entries(): FileEntry[] {
    const mapped = [...this.#mapped.values()].map((reg): FileEntry => ({ type: FdType.REG, id: reg.id, reg }))
    return [...mapped, ...this.#open]
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
