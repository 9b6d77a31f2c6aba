import { closeSync, openSync, readSync, writeFileSync, writevSync } from 'node:fs'
import { PageferryError } from '@pageferry/base'
import { InstalledHashes } from '@pageferry/pages'
import { hashesOf, zeroHashesOf } from './page-hasher.js'

/** See InstalledHashes. Records of kind `kept` have no hashes. */
const KINDS = ['round', 'lazy', 'kept'] as const
export type HashRecordKind = (typeof KINDS)[number]

/** Words of a record's header: its kind, the length of its run table, its number of hashes. Table and hashes follow. */
const headerWords = 3
const wordBytes = 8
/**
 * Longest record that a reader accepts, in words. A batch has 2^16 zero pages at most, and a pagemap's runs fit as
 * well.
 */
const maxRecordWords = 2 ** 27

/**
 * The hashes of every installed page, in a file of the migration's own directory. At the end this worker or its
 * successor makes the proof of --verify from it. Every thread that installs pages appends by itself. A lazy page is
 * recorded before it is installed: afterwards the workload may change it, and it can no longer be read back.
 *
 * O_APPEND makes one writev(2) one record, whichever thread calls. Nothing is synchronised: the pages are lost with the
 * host, too. kill -9 can only tear the last record, since it ends all threads at once.
 */
export class HashLog {
  readonly #fd: number
  private constructor(fd: number) {
    this.#fd = fd
  }

  /** Creates an empty log before the freeze: a new file waits for the file system's journal. */
  static create(path: string): void {
    writeFileSync(path, '', { mode: 0o600 })
  }

  static open(path: string): HashLog {
    return new HashLog(openSync(path, 'a'))
  }

  /** @returns false when the record was not written, for example because the disk is full */
  append(kind: HashRecordKind, runs: Float64Array, hashes: BigUint64Array = new BigUint64Array(0)): boolean {
    const header = Float64Array.of(KINDS.indexOf(kind), runs.length, hashes.length)
    const bytes = header.byteLength + runs.byteLength + hashes.byteLength
    try {
      // Do not write the rest in a second call: another thread may have appended its record in between.
      if (writevSync(this.#fd, [header, runs, hashes]) === bytes) return true
    } catch {
      // Installing the pages is more important. The proof will report the missing hashes.
    }
    return false
  }

  /** Records lazy pages that are about to be installed. Returns false as `append` does. */
  appendLazy(runs: Float64Array, pages: Uint8Array, zeroRuns: Float64Array): boolean {
    if (runs.length > 0 && !this.append('lazy', runs, hashesOf(pages))) return false
    return zeroRuns.length === 0 || this.append('lazy', zeroRuns, zeroHashesOf(zeroRuns))
  }

  close(): void {
    closeSync(this.#fd)
  }
}

/**
 * Reads the whole log.
 * @throws INTERNAL when a record is invalid, for example after one that a full disk has torn; ENOENT and its kin
 */
export function readHashLog(path: string): InstalledHashes {
  const installed = new InstalledHashes()
  const fd = openSync(path, 'r')
  try {
    let position = 0
    const words = (nr: number): Float64Array | null => {
      const bytes = new Uint8Array(nr * wordBytes)
      let got = 0
      while (got < bytes.length) {
        const read = readSync(fd, bytes, got, bytes.length - got, position + got)
        if (read === 0) return null
        got += read
      }
      position += bytes.length
      return new Float64Array(bytes.buffer)
    }
    for (let header = words(headerWords); header !== null; header = words(headerWords)) {
      const kind = KINDS[header[0]]
      const [, nrRunWords, nrHashes] = header
      if (kind === undefined || !isLength(nrRunWords) || !isLength(nrHashes)) {
        throw new PageferryError('INTERNAL', `${path} has no record at byte ${position}`)
      }
      const body = words(nrRunWords + nrHashes)
      if (body === null) break
      enter(installed, kind, body.subarray(0, nrRunWords), body.subarray(nrRunWords))
    }
  } finally {
    closeSync(fd)
  }
  return installed
}

function isLength(words: number): boolean {
  return Number.isInteger(words) && words >= 0 && words <= maxRecordWords
}

function enter(
  installed: InstalledHashes,
  kind: HashRecordKind,
  runs: Float64Array,
  words: Float64Array,
): void {
  const hashes = new BigUint64Array(words.buffer, words.byteOffset, words.length)
  switch (kind) {
    case 'round':
      installed.noteRound(runs, hashes)
      return
    case 'lazy':
      installed.noteLazy(runs, hashes)
      return
    case 'kept':
      installed.noteKept(runs)
  }
}
