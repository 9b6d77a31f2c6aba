import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { PageferryError, packageRoot } from '@pageferry/base'

/** Absolute path of a program of ./programs. */
export function nativeProgram(name: 'probe' | 'kernel-limits' | 'link-relay'): string {
  const path = join(packageRoot('bench'), 'build', name)
  if (existsSync(path)) return path
  throw new PageferryError('UNSUPPORTED_HOST', `the program ${path} is not built: run "npm run setup"`)
}
