import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { PageferryError, packageRoot } from '@pageferry/base'

function program(name: string): string {
  const path = join(packageRoot('kernel'), 'build', name)
  if (existsSync(path)) return path
  throw new PageferryError('UNSUPPORTED_HOST', `the program ${path} is not built: run "npm run setup"`)
}

/** Absolute paths of the native programs; reading one that is not built throws UNSUPPORTED_HOST. */
export const paths = {
  /** Parent and reaper of a restored tree, see programs/keeper.c. */
  get keeper(): string {
    return program('keeper')
  },
  /** A process that its user may inspect, see programs/bystander.c. */
  get bystander(): string {
    return program('bystander')
  },
  /** The program of a process until its own memory is restored, see programs/skeleton.c. */
  get skeleton(): string {
    return program('skeleton')
  },
}
