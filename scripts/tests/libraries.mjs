// Joins libraries of hundreds of modules into one file each, for the test processes. Node looks up, reads and links each
// module by itself, and asks the loader of the tests about it: tap takes 0.55 s of processor time to load and typebox
// 0.85 s, and from one file 0.15 s and 0.1 s. There are 140 test processes.

import { existsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { build } from 'esbuild'
import { joinedLibraries, joinedLibrary } from '../typescript-loader.mjs'
import { root } from './groups.mjs'

/** Does nothing if they are newer than the versions that are installed. */
export async function joinLibraries() {
  const installed = statSync(join(root, 'package-lock.json')).mtimeMs
  const isNew = (path) => existsSync(path) && statSync(path).mtimeMs > installed
  await Promise.all(
    joinedLibraries
      .map((name) => ({ name, outfile: joinedLibrary(name) }))
      .filter(({ outfile }) => !isNew(outfile))
      .map(({ name, outfile }) =>
        build({
          stdin: { contents: `export * from '${name}'; export { default } from '${name}'`, resolveDir: root },
          outfile,
          bundle: true,
          platform: 'node',
          target: 'node20',
          format: 'esm',
          // Modules of CommonJS are in here too. They call require() for Node's own modules.
          banner: {
            js: "import { createRequire as requireOf } from 'node:module'; const require = requireOf(import.meta.url);",
          },
          logLevel: 'warning',
        }),
      ),
  )
}
