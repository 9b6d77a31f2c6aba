import { decodePagemap, encodePagemap } from '@pageferry/images'
import type { PagemapEntry } from '@pageferry/pages'

/** Encodes entries of the final pagemap as a pagemap image, the form in which they travel. */
export function encodePagemapEntries(from: Iterable<PagemapEntry>): Uint8Array {
  const entries = [...from]
  const runs = new Float64Array(entries.length * 2)
  const flags = new Uint8Array(entries.length)
  for (const [i, entry] of entries.entries()) {
    runs[2 * i] = entry.first
    runs[2 * i + 1] = entry.nr
    flags[i] = entry.flags
  }
  return encodePagemap({ pagesId: 1, runs, nrRuns: entries.length, flags })
}

/**
 * The inverse.
 * @throws as decodePagemap does, before the first entry
 */
export function decodePagemapEntries(bytes: Uint8Array): Iterable<PagemapEntry> {
  const { runs, nrRuns, flags } = decodePagemap(bytes)
  return (function* () {
    for (let i = 0; i < nrRuns; i++) yield { first: runs[2 * i], nr: runs[2 * i + 1], flags: flags[i] }
  })()
}
