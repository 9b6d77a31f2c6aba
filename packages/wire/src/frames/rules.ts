import { pageBytes, pagesInRuns } from '@pageferry/base'
import { WireError } from './errors.js'
import type { Frame } from './frames.js'
import { imagePieceBytes, pageLimit } from './limits.js'

/** Bytes of a frame's pages after decompression. */
export function pageBytesOf({ runs }: { runs: Float64Array }): number {
  return pagesInRuns(runs) * pageBytes
}

/**
 * Bytes behind the header. They always follow from the header alone, so a message that was cut anywhere is detected.
 * For the same reason every piece of an image except the last is `imagePieceBytes` long.
 */
export function payloadBytesOf(frame: Frame): number {
  switch (frame.type) {
    case 'pageBatch':
    case 'pageReply':
      return frame.zstdBytes || pageBytesOf(frame)
    case 'pageHashes':
      return pagesInRuns(frame.runs) * BigUint64Array.BYTES_PER_ELEMENT
    case 'image':
      return Math.min(imagePieceBytes, frame.totalBytes - frame.offset)
    case 'ghostData':
      return frame.hole ? 0 : frame.bytes
    default:
      return 0
  }
}

/**
 * Checks the rules between the fields of one frame.
 * @throws WireError
 */
export function checkRules(frame: Frame): void {
  switch (frame.type) {
    case 'hello':
      if (frame.lane !== 'bulk' && frame.laneIndex !== 0) {
        throw new WireError(
          'BAD_VALUE',
          `hello.laneIndex is ${frame.laneIndex}, but there is one ${frame.lane} lane`,
        )
      }
      return
    case 'image':
      if (frame.offset % imagePieceBytes !== 0 || (frame.offset >= frame.totalBytes && frame.offset !== 0)) {
        throw new WireError(
          'BAD_VALUE',
          `image.offset ${frame.offset} does not begin a piece of ${frame.totalBytes} bytes`,
        )
      }
      return
    case 'pageRequest':
      checkWindow(frame.page, frame.nrPages, 'pageRequest')
      return
    case 'pageReply':
      // An answer without runs is valid: none of the pages has to come on this lane any more.
      checkWindow(frame.page, frame.nrPages, 'pageReply')
      checkDisjoint(frame.runs, frame.zeroRuns, 'pageReply')
      checkWithin(frame.runs, frame.page, frame.nrPages, 'pageReply.runs')
      checkWithin(frame.zeroRuns, frame.page, frame.nrPages, 'pageReply.zeroRuns')
      checkSmaller(frame, 'pageReply')
      return
    case 'pageBatch':
      if (frame.runs.length + frame.zeroRuns.length === 0) {
        throw new WireError('BAD_RUNS', 'pageBatch has no pages')
      }
      checkDisjoint(frame.runs, frame.zeroRuns, 'pageBatch')
      checkSmaller(frame, 'pageBatch')
      return
    case 'discard':
    case 'hashRequest':
      if (frame.runs.length === 0) throw new WireError('BAD_RUNS', `${frame.type} has no pages`)
      return
  }
}

function checkWindow(page: number, nrPages: number, at: string): void {
  if (page + nrPages > pageLimit) {
    throw new WireError('BAD_RUNS', `${at} leaves the address space at page ${page}`)
  }
}

/** No payload may be larger than its pages, and a frame without pages cannot be compressed. */
function checkSmaller(frame: { runs: Float64Array; zstdBytes: number }, at: string): void {
  const bytes = pageBytesOf(frame)
  if (frame.zstdBytes > 0 && frame.zstdBytes >= bytes) {
    throw new WireError('BAD_VALUE', `${at}.zstdBytes is ${frame.zstdBytes}, for pages of ${bytes} bytes`)
  }
}

/** The runs are known to be ordered, so the first and the last decide. */
function checkWithin(runs: Float64Array, page: number, nrPages: number, at: string): void {
  if (runs.length === 0) return
  const end = runs[runs.length - 2] + runs[runs.length - 1]
  if (runs[0] < page || end > page + nrPages) {
    throw new WireError('BAD_RUNS', `${at} has pages outside the ${nrPages} at page ${page}`)
  }
}

/** A page has contents or is zero, never both: the result would depend on the order of installation. */
function checkDisjoint(a: Float64Array, b: Float64Array, at: string): void {
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] + a[i + 1] <= b[j]) i += 2
    else if (b[j] + b[j + 1] <= a[i]) j += 2
    else throw new WireError('BAD_RUNS', `${at} calls page ${Math.max(a[i], b[j])} both zero and not`)
  }
}
