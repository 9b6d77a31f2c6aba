import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { PageferryError } from '@pageferry/base'

/** The directory of this package: found upwards, because compiled files lie one level deeper than sources. */
export const packageRoot = findPackageRoot(dirname(fileURLToPath(import.meta.url)))

/**
 * The addon as C exports it, one object per facility (`addon.ptrace`, `addon.memory`, …). Only this package uses it:
 * each facility's TypeScript file gives its object a type and documents it.
 */
export const addon = loadAddon()

function findPackageRoot(start: string): string {
  let directory = start
  while (!existsSync(join(directory, 'package.json'))) {
    const parent = dirname(directory)
    if (parent === directory) throw new PageferryError('INTERNAL', `no package.json above ${start}`)
    directory = parent
  }
  return directory
}

function loadAddon(): Record<string, unknown> {
  const load = createRequire(import.meta.url)('node-gyp-build') as (root: string) => Record<string, unknown>
  try {
    return load(packageRoot)
  } catch (cause) {
    throw new PageferryError(
      'UNSUPPORTED_HOST',
      `the native addon is not built in ${packageRoot}: run "npm run setup"`,
      { cause },
    )
  }
}
