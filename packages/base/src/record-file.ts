import fs from 'node:fs'
import path from 'node:path'
import { PageferryError } from './errors.js'

/*
 * An append-only file of JSON records, made for journals: few small records, each durable before the next step.
 *
 *     u32 LE payload bytes | u32 LE CRC-32 of the payload | payload (JSON, UTF-8) | next record ...
 *
 * Appends are synchronised one by one, so only the last record can be torn. A torn record runs past the end of the
 * file, or ends at it with a wrong checksum. Blocks that never reached the disk show as zeros up to the end. Such a
 * tail is cut off. Any other mismatch is damage. A decision may stand behind it, so it is reported and never cut off.
 *
 * Room behind the records is written as zeros when the file is opened. An append that makes the file longer waits for
 * the file system's journal and for other writers in it (1 to 2 ms were seen in a freeze). If a machine then loses its
 * power, later sectors of the last record may survive without the first one. That shows as damage, and is reported.
 */

const headerBytes = 8
/** Some twenty decisions. More of them make the file longer. */
const reservedBytes = 8192

/** Bound of one record: journals hold decisions, not data. */
export const maxRecordBytes = 64 * 1024

/** `details.written` of a failed append: 'no' when a later open certainly does not find the record. */
export type Written = 'no' | 'unknown'

export interface RecordScan {
  records: unknown[]
  /** Place of the next record. */
  endBytes: number
  /** Length of the rest: a torn record, reserved room, or both. */
  tailBytes: number
}

export class RecordFile {
  /** Content of the file when it was opened. */
  readonly records: readonly unknown[]
  readonly path: string
  #fd: number
  #endBytes: number
  #broken = false

  /** Used by open(). */
  private constructor(file: string, fd: number, scan: RecordScan) {
    this.path = file
    this.#fd = fd
    this.#endBytes = scan.endBytes
    this.records = scan.records
  }

  /**
   * Opens for appending; creates the file (mode 0600, durably: the directory is synchronised) if it is missing.
   * Existing records are synchronised too: the caller acts on a record that it reads, so it must not vanish.
   * @throws PageferryError INTERNAL when the file is damaged; errors of node:fs as they are.
   */
  static open(file: string): RecordFile {
    const fd = fs.openSync(file, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o600)
    try {
      const scan = scanRecords(fs.readFileSync(fd), file)
      if (scan.tailBytes > 0) fs.ftruncateSync(fd, scan.endBytes)
      writeAll(fd, Buffer.alloc(reservedBytes), scan.endBytes)
      fs.fsyncSync(fd)
      syncDirectory(path.dirname(file))
      return new RecordFile(file, fd, scan)
    } catch (error) {
      fs.closeSync(fd)
      throw error
    }
  }

  /** Reads without changing anything. A missing file has no records. */
  static read(file: string): RecordScan {
    let content: Uint8Array = new Uint8Array(0)
    try {
      content = fs.readFileSync(file)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    }
    return scanRecords(content, file)
  }

  /**
   * Appends one record, which is on the disk when this returns. With `synced` false it is in the page cache and
   * survives only this process; the next synchronised record saves it, too.
   * @throws PageferryError KERNEL with `details.written`; after 'unknown' the file accepts no more records and must be
   * opened again, which decides. BAD_REQUEST (written: 'no') for a record over the bound.
   */
  append(record: unknown, synced = true): void {
    if (this.#fd < 0) throw failed('INTERNAL', `${this.path} is closed`, 'no')
    if (this.#broken) throw failed('KERNEL', `${this.path} must be opened again after a failed append`, 'no')
    const bytes = encodeRecord(record)
    try {
      writeAll(this.#fd, bytes, this.#endBytes)
      if (synced) fs.fdatasyncSync(this.#fd)
    } catch (error) {
      throw failed('KERNEL', `cannot append to ${this.path}: ${text(error)}`, this.#undo(), error)
    }
    this.#endBytes += bytes.length
  }

  close(): void {
    if (this.#fd >= 0) fs.closeSync(this.#fd)
    this.#fd = -1
  }

  /** After a restart the file is read through the page cache, so a truncated record is gone. */
  #undo(): Written {
    try {
      fs.ftruncateSync(this.#fd, this.#endBytes)
      return 'no'
    } catch {
      this.#broken = true
      return 'unknown'
    }
  }
}

/** @throws PageferryError BAD_REQUEST when the record is not JSON or over the bound. */
export function encodeRecord(record: unknown): Uint8Array {
  const json: string | undefined = JSON.stringify(record)
  const payload = Buffer.from(json ?? '')
  if (payload.length === 0 || payload.length > maxRecordBytes) {
    throw failed(
      'BAD_REQUEST',
      `a record must have 1 to ${maxRecordBytes} bytes, not ${payload.length}`,
      'no',
    )
  }
  const bytes = Buffer.alloc(headerBytes + payload.length)
  bytes.writeUInt32LE(payload.length, 0)
  bytes.writeUInt32LE(crc32(payload), 4)
  payload.copy(bytes, headerBytes)
  return bytes
}

/** @throws PageferryError INTERNAL when a damaged record is not the torn tail. */
export function scanRecords(content: Uint8Array, name = 'the file'): RecordScan {
  const bytes = Buffer.from(content.buffer, content.byteOffset, content.byteLength)
  const records: unknown[] = []
  let at = 0
  while (bytes.length - at >= headerBytes) {
    const length = bytes.readUInt32LE(at)
    const end = at + headerBytes + length
    const payload = bytes.subarray(at + headerBytes, end)
    const whole = length > 0 && length <= maxRecordBytes && payload.length === length
    if (!whole || crc32(payload) !== bytes.readUInt32LE(at + 4)) {
      const torn = length <= maxRecordBytes && bytes.subarray(end).every((byte) => byte === 0)
      if (torn) break
      throw damaged(name, at)
    }
    try {
      records.push(JSON.parse(payload.toString()))
    } catch {
      throw damaged(name, at)
    }
    at = end
  }
  return { records, endBytes: at, tailBytes: bytes.length - at }
}

/**
 * CRC-32 of IEEE 802.3 (reflected polynomial 0xedb88320), as in zlib and PNG. node:zlib exports it only from
 * Node 20.15 on, and a journal must be readable with every Node 20.
 */
export function crc32(bytes: Uint8Array): number {
  let crc = 0xffffffff
  for (const byte of bytes) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ byte) & 0xff]
  return (crc ^ 0xffffffff) >>> 0
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1
  return value
})

function writeAll(fd: number, bytes: Uint8Array, position: number): void {
  let done = 0
  while (done < bytes.length) done += fs.writeSync(fd, bytes, done, bytes.length - done, position + done)
}

function syncDirectory(directory: string): void {
  const fd = fs.openSync(directory, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY)
  try {
    fs.fsyncSync(fd)
  } finally {
    fs.closeSync(fd)
  }
}

function damaged(name: string, at: number): PageferryError {
  return new PageferryError('INTERNAL', `${name} is damaged at byte ${at}; nothing was changed`, {
    details: { at },
  })
}

function failed(
  code: 'KERNEL' | 'INTERNAL' | 'BAD_REQUEST',
  message: string,
  written: Written,
  cause?: unknown,
): PageferryError {
  return new PageferryError(code, message, { cause, details: { written } })
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
