import { createRequire } from 'node:module'
import { dirname } from 'node:path'

const requireHere = createRequire(import.meta.url)

/**
 * The directory of one of our packages, by its name without the scope: for its native programs and other files that are
 * not JavaScript. Code asks here and does not look beside itself: it may run from src (in tests), from dist, or from
 * the command line's bundle.
 */
export function packageRoot(name: string): string {
  return dirname(requireHere.resolve(`@pageferry/${name}/package.json`))
}

/** The version in a package's package.json. */
export function packageVersion(name: string): string {
  return (requireHere(`@pageferry/${name}/package.json`) as { version: string }).version
}
