import { PageferryError } from '@pageferry/base'
import {
  type CoreEntry,
  decodeImage,
  type FdinfoEntry,
  type FileEntry,
  type FsEntry,
  type ImageContent,
  type ImageKindName,
  imageFileName,
  type MmEntry,
  type PstreeEntry,
  RemapType,
} from '@pageferry/images'
import type { ListImage, ListMessage } from './kinds/descriptors/kind.js'

/** The image files of one process, by name. They come from a peer: decoding checks their form. */
export class ProcessImages {
  readonly #bytes = new Map<string, Uint8Array>()
  /** Decoded images, because a freeze needs the memory map and the files more than once. */
  readonly #decoded = new Map<string, unknown>()

  set(name: string, bytes: Uint8Array): void {
    this.#bytes.set(name, bytes)
    this.#decoded.delete(name)
  }

  get(name: string): Uint8Array {
    const bytes = this.#bytes.get(name)
    if (bytes === undefined) throw new PageferryError('PROTOCOL', `the image ${name} is missing`)
    return bytes
  }

  get names(): string[] {
    return [...this.#bytes.keys()]
  }

  mm(pid: number): MmEntry {
    return this.#decode('mm', pid)
  }

  core(tid: number): CoreEntry {
    return this.#decode('core', tid)
  }

  files(): FileEntry[] {
    return this.#decode('files')
  }

  fdinfo(id: number): FdinfoEntry[] {
    return this.#decode('fdinfo', id)
  }

  fs(pid: number): FsEntry {
    return this.#decode('fs', pid)
  }

  /** Ids of files without a name, by those of files.img. */
  ghostIds(): ReadonlyMap<number, number> {
    const ghosts = this.#decode('remap-fpath').filter(({ remapType }) => remapType === RemapType.GHOST)
    return new Map(ghosts.map(({ origId, remapId }) => [origId, remapId]))
  }

  /** Messages of an image that belongs to one kind of open files. */
  messages<K extends ListImage>(kind: K): ListMessage<K>[] {
    const messages: unknown = this.#decode(kind)
    return messages as ListMessage<K>[]
  }

  #decode<K extends ImageKindName>(kind: K, id?: number): ImageContent<K> {
    const name = imageFileName(kind, id)
    const known = this.#decoded.get(name) as ImageContent<K> | undefined
    if (known !== undefined) return known
    const content = decodeImage(kind, this.get(name))
    this.#decoded.set(name, content)
    return content
  }

  pstree(): PstreeEntry {
    const [root, ...more] = this.#decode('pstree')
    if (root === undefined || more.length > 0) {
      throw new PageferryError('PROTOCOL', 'the process tree has not exactly one process')
    }
    return root
  }
}
