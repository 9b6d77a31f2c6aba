import { createRequire } from 'node:module'
import { PageferryError, packageRoot } from '@pageferry/base'

/**
 * The addon as C exports it, one object per facility (`addon.ptrace`, `addon.memory`, …). Only this package uses it:
 * each facility's TypeScript file gives its object a type and documents it.
 */
export const addon = loadAddon()

function loadAddon(): Record<string, unknown> {
  const root = packageRoot('kernel')
  const load = createRequire(import.meta.url)('node-gyp-build') as (root: string) => Record<string, unknown>
  try {
    return load(root)
  } catch (cause) {
    throw new PageferryError(
      'UNSUPPORTED_HOST',
      `the native addon is not built in ${root}: run "npm run setup"`,
      { cause },
    )
  }
}
