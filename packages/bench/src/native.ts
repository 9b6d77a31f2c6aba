import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { PageferryError } from '@pageferry/base'

/** Directory of this package, for compiled files as well as, in tests, for sources. */
export const packageRoot = findPackageRoot(dirname(fileURLToPath(import.meta.url)))

function findPackageRoot(directory: string): string {
  return existsSync(join(directory, 'package.json')) ? directory : findPackageRoot(dirname(directory))
}

/** Absolute path of a program of ./programs. */
export function nativeProgram(name: 'probe' | 'kernel-limits' | 'link-relay'): string {
  const path = join(packageRoot, 'build', name)
  if (existsSync(path)) return path
  throw new PageferryError('UNSUPPORTED_HOST', `the program ${path} is not built: run "npm run setup"`)
}
