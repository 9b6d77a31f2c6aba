/**
 * A run table is the form in which page ranges travel between TypeScript and the addon: pairs of [first page, number of
 * pages] as doubles, of which the first `nrRuns` pairs count. Doubles, because page numbers need 36 bits and BigInt
 * costs ten times as much per page.
 */
export type RunTable = Float64Array

/** Pairs that fit into a table, or its pairs if it has exactly the right size. */
export function runCapacity(table: RunTable): number {
  return table.length >>> 1
}

/** Sum of the page counts of the first `nrRuns` runs. */
export function pagesInRuns(table: RunTable, nrRuns = runCapacity(table)): number {
  let pages = 0
  for (let i = 0; i < nrRuns; i++) pages += table[2 * i + 1]
  return pages
}

/** A table out of [first, nr] pairs; meant for tests and small lists. */
export function runTableOf(...runs: ReadonlyArray<readonly [first: number, nr: number]>): RunTable {
  const table = new Float64Array(runs.length * 2)
  for (let i = 0; i < runs.length; i++) table.set(runs[i], 2 * i)
  return table
}

/** Cuts a table behind its first `nrPages` pages, in the middle of a run if need be. */
export function cutRuns(table: RunTable, nrPages: number): { done: number[]; rest: RunTable } {
  const done: number[] = []
  let left = nrPages
  for (let r = 0; r < table.length; r += 2) {
    if (table[r + 1] > left) {
      if (left > 0) done.push(table[r], left)
      const rest = table.slice(r)
      rest[0] += left
      rest[1] -= left
      return { done, rest }
    }
    done.push(table[r], table[r + 1])
    left -= table[r + 1]
  }
  return { done, rest: new Float64Array(0) }
}

/** The first `nrRuns` runs in ascending order; runs that touch become one. They must not overlap. */
export function sortRuns(table: RunTable, nrRuns = runCapacity(table)): RunTable {
  const pairs = Array.from({ length: nrRuns }, (_, i) => [table[2 * i], table[2 * i + 1]])
  pairs.sort((a, b) => a[0] - b[0])
  const runs: number[] = []
  for (const [first, nr] of pairs) {
    const last = runs.length - 2
    if (last >= 0 && runs[last] + runs[last + 1] === first) runs[last + 1] += nr
    else runs.push(first, nr)
  }
  return Float64Array.from(runs)
}
