import { PageferryError } from '@pageferry/base'
import type { PageSet } from '@pageferry/pages'
import { hashRequestsMax } from '@pageferry/wire'
import type { Findings } from './findings.js'
import type { OriginalHashes } from './original-hashes.js'
import { piecesOf } from './page-hasher.js'

/** A piece whose hashes were requested. */
interface Asked {
  runs: Float64Array
  own: BigUint64Array
  original: Promise<BigUint64Array>
}

/**
 * Compares pages with the frozen original, piece by piece. While the source hashes one piece, the previous one is
 * compared here. Pages without an answer of the source are unproven.
 * @param own our hashes of a piece; fewer than its pages: the page behind them is not there
 * @throws the signal's reason, and nothing else
 */
export async function compareWithOriginal(
  pages: PageSet,
  own: (runs: Float64Array, nrPages: number) => BigUint64Array,
  original: Pick<OriginalHashes, 'ask'>,
  findings: Findings,
  signal: AbortSignal,
): Promise<void> {
  const asked: Asked[] = []
  const left = pages.clone()
  const settleOldest = async (): Promise<void> => {
    const [oldest] = asked.splice(0, 1)
    const hashes = await orAborted(oldest.original, signal)
    compare(oldest.runs, oldest.own, hashes, findings)
    left.removeRuns(oldest.runs)
  }
  try {
    for (const { runs, nrPages } of piecesOf(pages)) {
      signal.throwIfAborted()
      // Ask first: the source hashes while we do.
      const answer = original.ask(runs)
      answer.catch(() => {})
      asked.push({ runs, own: own(runs, nrPages), original: answer })
      if (asked.length === hashRequestsMax) await settleOldest()
    }
    while (asked.length > 0) await settleOldest()
  } catch (error) {
    signal.throwIfAborted()
    findings.noteUnproven(left, error instanceof Error ? error.message : String(error))
  }
}

function compare(
  runs: Float64Array,
  own: BigUint64Array,
  original: BigUint64Array,
  { compared, differing }: Findings,
): void {
  let at = 0
  for (let r = 0; r < runs.length; r += 2) {
    for (let page = runs[r]; page < runs[r] + runs[r + 1]; page++, at++) {
      if (at >= own.length || own[at] !== original[at]) differing.addRange(page, 1)
    }
    compared.addRange(runs[r], runs[r + 1])
  }
}

function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const giveUp = (): void => reject(signal.reason)
    if (signal.aborted) giveUp()
    signal.addEventListener('abort', giveUp, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', giveUp))
  })
}

/** The error for a log that cannot be read: nothing is known of any page. */
export function unreadable(cause: unknown): PageferryError {
  const reason = cause instanceof Error ? cause.message : String(cause)
  return new PageferryError('VERIFY_FAILED', `the hashes of the installed pages are lost: ${reason}`, {
    cause,
  })
}
