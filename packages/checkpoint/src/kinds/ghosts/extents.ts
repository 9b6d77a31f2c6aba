import { MiB, pageBytes } from '@pageferry/base'
import { fds } from '@pageferry/kernel'

/** The parts of a file that hold data; what lies between is a hole (lseek(2), SEEK_DATA). */

/** A file travels, and is compared, in parts of this size. */
export const ghostChunkBytes = MiB

export interface Extent {
  offset: number
  bytes: number
}

/**
 * In ascending order, up to `size`. A file that is written meanwhile may be seen in between. A file system that knows no
 * holes shows one extent.
 */
export function* extentsOf(fd: number, size: number): Generator<Extent> {
  for (let at = 0; at < size; ) {
    const begin = seek(fd, at, fds.SEEK_DATA)
    if (begin === null || begin >= size) return
    const end = Math.min(size, seek(fd, begin, fds.SEEK_HOLE) ?? size)
    if (end > begin) yield { offset: begin, bytes: end - begin }
    at = Math.max(end, begin + 1)
  }
}

/** Room that an extent takes, in bytes: whole pages. Both hosts count like this. */
export function roomOf({ offset, bytes }: Extent): number {
  const end = Math.ceil((offset + bytes) / pageBytes) * pageBytes
  return end - Math.floor(offset / pageBytes) * pageBytes
}

/**
 * Room that the data of a file takes, without its holes.
 *
 * @param limit more than this need not be counted: a file may have millions of extents
 */
export function dataBytesOf(fd: number, size: number, limit: number): number {
  let bytes = 0
  for (const extent of extentsOf(fd, size)) {
    bytes += roomOf(extent)
    if (bytes > limit) break
  }
  return bytes
}

/** Null: there is none behind `offset`. */
function seek(fd: number, offset: number, whence: number): number | null {
  try {
    return Number(fds.lseek(fd, BigInt(offset), whence))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENXIO') return null
    throw error
  }
}
