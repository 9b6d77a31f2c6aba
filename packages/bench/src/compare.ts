import { readResultFile } from './result.js'
import { formatComparison } from './table.js'

/** `bench compare A B`: the text. */
export function compareFiles(a: string, b: string): string {
  return formatComparison(readResultFile(a), readResultFile(b))
}
