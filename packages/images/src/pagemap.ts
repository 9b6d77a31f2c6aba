// pagemap-ID.img, read and written by hand: a fragmented workload has a million entries, and the time counts as
// downtime. Layout (proto/criu/pagemap.proto, proto/README.md): two magics, a head, then per entry a length word and
// vaddr, compat_nr_pages, flags, nr_pages. Page numbers stay doubles; nothing here makes a bigint or an object per
// entry.

import { PageferryError } from '@pageferry/base'
import { checkMagics, malformed, words } from './codec.js'
import { COMMON_MAGIC } from './kinds.js'

/** The content is that of the parent image (of the page sent in an earlier round). */
export const PE_PARENT = 1
/** The content may be fetched after the resume. */
export const PE_LAZY = 2
/** The content is in the pages file. */
export const PE_PRESENT = 4
const allFlags = PE_PARENT | PE_LAZY | PE_PRESENT

/** Entries in address order; entry i covers `runs[2i + 1]` pages from page number `runs[2i]`. */
export interface PagemapTable {
  /** The PRESENT pages are in pages-<pagesId>.img. */
  pagesId: number
  runs: Float64Array
  nrRuns: number
  /** PE_* of each entry. */
  flags: Uint8Array
}

const magics = [COMMON_MAGIC, 0x56084025]
/** User addresses have 47 bits. 48 bits hold every address that x86_64 gives out unless asked for more. */
const maxPage = 2 ** 36
/** Largest entry we write: length word, then four fields with their tag byte. */
const maxEntryBytes = 4 + (1 + 8) + (1 + 5) + (1 + 1) + (1 + 7)
/** Largest entry we accept: ours, with room for additions of a newer format. */
const maxMessageBytes = 256
/** Enough for 256 GiB in which no page is like its neighbour. */
const maxEntries = 2 ** 26

/** Encodes a whole pagemap file. Throws INTERNAL if the entries are not in order, overlap, or are empty. */
export function encodePagemap(table: PagemapTable): Uint8Array {
  const { runs, nrRuns, flags } = table
  if (nrRuns > maxEntries || 2 * nrRuns > runs.length || nrRuns > flags.length || !isPagesId(table.pagesId)) {
    throw new PageferryError('INTERNAL', `pagemap of ${nrRuns} entries, pages id ${table.pagesId}`)
  }
  const out = new Uint8Array(64 + nrRuns * maxEntryBytes)
  out.set(words(magics))
  let at = 8 + 4
  out[at++] = 0x08 // pages_id
  at = putVarint(out, at, table.pagesId)
  out[8] = at - 12

  let end = 0
  for (let i = 0; i < nrRuns; i++) {
    const first = runs[2 * i]
    const count = runs[2 * i + 1]
    const inRange =
      first >= end && count >= 1 && first + count <= maxPage && flags[i] >= 1 && flags[i] <= allFlags
    if (!inRange || !Number.isInteger(first) || !Number.isInteger(count)) {
      const details = { index: i, first, count, flags: flags[i] }
      throw new PageferryError('INTERNAL', `pagemap entry ${i} is out of order or out of range`, { details })
    }
    end = first + count
    const start = at
    at += 4
    out[at++] = 0x08 // vaddr = first * 4096, in 7-bit groups: the low 28 bits, then the rest
    at = putVarintSplit(out, at, Math.floor(first / 65536), (first % 65536) * 4096)
    out[at++] = 0x10 // compat_nr_pages
    at = putVarint(out, at, Math.min(count, 0xffffffff))
    out[at++] = 0x20 // flags
    out[at++] = flags[i]
    out[at++] = 0x28 // nr_pages
    at = putVarint(out, at, count)
    out[start] = at - start - 4 // below 256, so the other three bytes of the length stay 0
  }
  return out.slice(0, at)
}

/**
 * Decodes a pagemap file. Throws PROTOCOL for anything malformed. Entries decide what the memory contains, so it also
 * rejects entries that are out of order, overlapping, empty, not page-aligned, or outside the address space. Entries
 * without flags (CRIU before 2.0) are PRESENT, or PARENT where `in_parent` says so.
 */
export function decodePagemap(bytes: Uint8Array): PagemapTable {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const cursor = { at: checkMagics('pagemap', magics, bytes), value: 0 }
  const nrRuns = countMessages(bytes, view, cursor.at) - 1
  if (nrRuns < 0) throw malformed('pagemap', cursor.at, 'the head is missing')
  const table = { pagesId: -1, runs: new Float64Array(2 * nrRuns), nrRuns, flags: new Uint8Array(nrRuns) }

  let end = 0
  for (let i = -1; i < nrRuns; i++) {
    const start = cursor.at + 4
    const stop = start + view.getUint32(cursor.at, true)
    cursor.at = start
    let [vaddr, compat, inParent, flags, count] = [-1, -1, 0, -1, -1]
    while (cursor.at < stop) {
      const tag = bytes[cursor.at++]
      if ((tag & 7) !== 0 || tag >= 0x80) {
        skipField(bytes, cursor, tag, stop)
        continue
      }
      getVarint(bytes, cursor, stop)
      if (tag === 0x08) vaddr = cursor.value
      else if (tag === 0x10) compat = cursor.value
      else if (tag === 0x18) inParent = cursor.value
      else if (tag === 0x20) flags = cursor.value
      else if (tag === 0x28) count = cursor.value
    }
    if (i < 0) {
      // The head's only field, pages_id, has the field number that vaddr has in an entry.
      if (!isPagesId(vaddr)) throw malformed('pagemap', start, 'no pages id')
      table.pagesId = vaddr
      continue
    }
    if (vaddr < 0 || compat < 0) throw malformed('pagemap', start, 'a required field is missing')
    if (count < 0) count = compat
    if (flags < 0) flags = inParent !== 0 ? PE_PARENT : PE_PRESENT
    const first = vaddr / 4096
    const inRange = first >= end && count >= 1 && first + count <= maxPage && flags >= 1 && flags <= allFlags
    if (!inRange || !Number.isInteger(first)) {
      throw malformed('pagemap', start, 'an entry is out of order or out of range')
    }
    end = first + count
    table.runs[2 * i] = first
    table.runs[2 * i + 1] = count
    table.flags[i] = flags
  }
  return table
}

function isPagesId(value: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= 0xffffffff
}

/** Counts the messages by their length words. So the tables are allocated once, and no later read leaves the buffer. */
function countMessages(bytes: Uint8Array, view: DataView, from: number): number {
  let count = 0
  for (let at = from; at < bytes.length; count++) {
    if (bytes.length - at < 4) throw malformed('pagemap', at, 'a length is cut off')
    const length = view.getUint32(at, true)
    if (length > maxMessageBytes) throw malformed('pagemap', at, `a message of ${length} bytes`)
    if (length > bytes.length - at - 4) throw malformed('pagemap', at, 'a message is cut off')
    if (count > maxEntries) throw malformed('pagemap', at, `more than ${maxEntries} entries`)
    at += 4 + length
  }
  return count
}

/** Writes a non-negative safe integer. */
function putVarint(out: Uint8Array, at: number, value: number): number {
  return putVarintSplit(out, at, Math.floor(value / 2 ** 28), value % 2 ** 28)
}

/** Writes high * 2^28 + low. Bit operations need both below 2^31, which holds for safe integers up to 2^59. */
function putVarintSplit(out: Uint8Array, start: number, high: number, low: number): number {
  let at = start
  let rest = low
  if (high > 0) {
    for (let group = 0; group < 4; group++) {
      out[at++] = (rest & 0x7f) | 0x80
      rest >>>= 7
    }
    rest = high
  }
  while (rest >= 0x80) {
    out[at++] = (rest & 0x7f) | 0x80
    rest >>>= 7
  }
  out[at++] = rest
  return at
}

/** Reads a number into `cursor.value`. A value that a double cannot hold is no address or count of this format. */
function getVarint(bytes: Uint8Array, cursor: { at: number; value: number }, stop: number): void {
  let low = 0
  let high = 0
  for (let shift = 0; shift < 56; shift += 7) {
    if (cursor.at >= stop) throw malformed('pagemap', cursor.at, 'a number is cut off')
    const byte = bytes[cursor.at++]
    if (shift < 28) low |= (byte & 0x7f) << shift
    else high |= (byte & 0x7f) << (shift - 28)
    if (byte < 0x80) {
      cursor.value = high * 2 ** 28 + low
      return
    }
  }
  throw malformed('pagemap', cursor.at, 'a number is too large')
}

/** Skips a field of a newer format: a tag of several bytes, or a fixed-size or length-delimited value. */
function skipField(
  bytes: Uint8Array,
  cursor: { at: number; value: number },
  firstByte: number,
  stop: number,
): void {
  const wireType = firstByte & 7
  for (let byte = firstByte; byte >= 0x80; byte = bytes[cursor.at++]) {
    if (cursor.at >= stop) throw malformed('pagemap', cursor.at, 'a field is cut off')
  }
  if (wireType === 0 || wireType === 2) getVarint(bytes, cursor, stop)
  const length =
    wireType === 2 ? cursor.value : wireType === 1 ? 8 : wireType === 5 ? 4 : wireType === 0 ? 0 : -1
  if (length < 0 || length > stop - cursor.at) throw malformed('pagemap', cursor.at, 'a field is cut off')
  cursor.at += length
}
