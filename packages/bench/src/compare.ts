import { readResultFile } from './result.js'
import { formatComparison } from './table.js'

/** The output of `bench compare A B`. */
export function compareFiles(a: string, b: string): string {
  return formatComparison(readResultFile(a), readResultFile(b))
}
