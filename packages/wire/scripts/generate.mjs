// Generates generated/frames.{js,d.ts} from proto/wire/frames.proto. Does nothing when they are up to date: a digest of
// everything that goes in stands in the first line (file times mean nothing after a git checkout).
import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

const require = createRequire(import.meta.url)
const packageDir = dirname(dirname(fileURLToPath(import.meta.url)))
const proto = join(packageDir, '../../proto/wire/frames.proto')
const outDir = join(packageDir, 'generated')

const args = [
  ...['--target', 'static-module', '--wrap', 'esm', '--force-long', '--dts'],
  // Its own root: protobufjs keeps roots in a process-wide table, and the image codecs have one too.
  ...['--root', 'pageferry-wire', '--dependency', 'protobufjs/minimal.js'],
  ...['--no-create', '--no-verify', '--no-convert', '--no-delimited', '--no-typeurl', '--no-service'],
]

const digest = createHash('sha256')
  .update(readFileSync(proto))
  .update(args.join(' '))
  .update(require('protobufjs-cli/package.json').version)
  .digest('hex')
const stamp = `// generated, inputs ${digest}\n`

if (!isUpToDate()) {
  mkdirSync(outDir, { recursive: true })
  // Renamed into place: two test runs may generate at the same time, and neither may import half a file.
  const scratch = mkdtempSync(join(outDir, '.tmp-'))
  try {
    const { pbjs } = require('protobufjs-cli')
    await promisify(pbjs.main)([...args, '--out', join(scratch, 'frames.js'), proto])
    for (const name of ['frames.d.ts', 'frames.js']) {
      const path = join(scratch, name)
      writeFileSync(path, stamp + readFileSync(path, 'utf8'))
      renameSync(path, join(outDir, name))
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

function isUpToDate() {
  try {
    return ['frames.js', 'frames.d.ts'].every((name) =>
      readFileSync(join(outDir, name), 'utf8').startsWith(stamp),
    )
  } catch {
    return false
  }
}
