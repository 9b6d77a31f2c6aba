// Generates from proto/criu/*.proto: generated/criu.{js,d.ts}, the protobufjs codecs, and generated/schema.{js,d.ts},
// the fields of each message with their types, which src/convert.ts checks and converts by. Does nothing when they are
// up to date: a digest of everything that goes in stands in the first line (file times mean nothing after a git
// checkout).
import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

const require = createRequire(import.meta.url)
const packageDir = dirname(dirname(fileURLToPath(import.meta.url)))
const protoDir = join(packageDir, '../../proto/criu')
const protos = readdirSync(protoDir)
  .filter((name) => name.endsWith('.proto'))
  .sort()
  .map((name) => join(protoDir, name))
const outDir = join(packageDir, 'generated')
// The declarations come first: who finds the last file up to date finds all of them.
const outputs = ['criu.d.ts', 'schema.d.ts', 'schema.js', 'criu.js']

const args = [
  ...['--target', 'static-module', '--wrap', 'esm', '--force-long', '--dts'],
  // Its own root: protobufjs keeps roots in a process-wide table, and the wire codecs have one too.
  ...['--root', 'pageferry-criu', '--dependency', 'protobufjs/minimal.js'],
  ...['--no-create', '--no-verify', '--no-convert', '--no-delimited', '--no-typeurl', '--no-service'],
]

const schemaTypes = `export interface SchemaField {
  readonly name: string
  readonly id: number
  readonly rule: 'required' | 'optional' | 'repeated'
  readonly type: 'uint32' | 'int32' | 'sint32' | 'uint64' | 'sint64' | 'bool' | 'string' | 'bytes' | 'enum' | 'message'
  /** Allowed numbers of an enum. */
  readonly values?: readonly number[]
  /** Name of the nested message. */
  readonly message?: string
}
export const schema: Readonly<Record<string, readonly SchemaField[]>>
`

const hash = createHash('sha256')
for (const proto of protos) hash.update(proto.slice(protoDir.length)).update(readFileSync(proto))
const digest = hash
  .update(readFileSync(fileURLToPath(import.meta.url)))
  .update(require('protobufjs-cli/package.json').version)
  .digest('hex')
const stamp = `// generated, inputs ${digest}\n`

if (!isUpToDate()) {
  mkdirSync(outDir, { recursive: true })
  // Renamed into place: two test runs may generate at the same time, and neither may import half a file.
  const scratch = mkdtempSync(join(outDir, '.tmp-'))
  try {
    const run = promisify(require('protobufjs-cli').pbjs.main)
    await run([...args, '--out', join(scratch, 'criu.js'), ...protos])
    await run(['--target', 'json', '--out', join(scratch, 'criu.json'), ...protos])
    const schema = toSchema(JSON.parse(readFileSync(join(scratch, 'criu.json'), 'utf8')).nested.criu.nested)
    writeFileSync(join(scratch, 'schema.js'), `export const schema = ${JSON.stringify(schema, null, 1)}\n`)
    writeFileSync(join(scratch, 'schema.d.ts'), schemaTypes)
    for (const name of outputs) {
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
    return outputs.every((name) => readFileSync(join(outDir, name), 'utf8').startsWith(stamp))
  } catch {
    return false
  }
}

function toSchema(nested) {
  const schema = {}
  for (const [message, { fields }] of Object.entries(nested)) {
    if (fields === undefined) continue
    schema[message] = Object.entries(fields).map(([name, { type, rule = 'optional', id }]) => {
      const values = nested[type]?.values
      if (values !== undefined) return { name, id, rule, type: 'enum', values: Object.values(values) }
      return nested[type] === undefined
        ? { name, id, rule, type }
        : { name, id, rule, type: 'message', message: type }
    })
  }
  return schema
}
