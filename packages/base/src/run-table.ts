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
