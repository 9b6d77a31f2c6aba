// Joins the programs of an installation, each a few hundred small modules, into a few files: packages/cli/bundle.
// Node looks each module up in the file system, and reads and links it by itself. Measured: a worker takes 0.7 s of
// processor time until it runs from dist, and 0.2 s from the bundle. Spare workers, and services that start again
// after a crash, win the same.
//
// What is found by its path is not in here: the addon, native programs and the demo (packageRoot of packages/base).

import { rmSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const packages = fileURLToPath(new URL('../packages/', import.meta.url))

// All programs and chunks are in one directory, because each is found beside the module that starts it.
const programs = {
  pageferry: 'cli/dist/src/main.js',
  'dump-worker': 'dump-service/dist/src/dump-worker.js',
  'fault-thread': 'dump-service/dist/src/lanes/fault-thread.js',
  'restore-worker': 'restore-service/dist/src/restore-worker.js',
  'bulk-thread': 'restore-service/dist/src/lanes/bulk-thread.js',
}

const outdir = `${packages}cli/bundle`
// Chunks are named by their contents, so old ones would stay.
rmSync(outdir, { recursive: true, force: true })
await build({
  absWorkingDir: packages,
  entryPoints: programs,
  outdir,
  bundle: true,
  splitting: true,
  platform: 'node',
  target: 'node20',
  format: 'esm',
  sourcemap: true,
  sourcesContent: false,
  // Modules of CommonJS are in here too. They call require() for Node's own modules.
  banner: {
    js: "import { createRequire as requireOf } from 'node:module'; const require = requireOf(import.meta.url);",
  },
  logLevel: 'warning',
})
