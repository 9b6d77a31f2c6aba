// Lets node run the tests' TypeScript as it is: `node --import ./scripts/typescript-loader.mjs file.test.ts`.
//
// tap brings a loader of its own, ts-node, which starts the compiler in every test process: 1.3 s of CPU per file,
// against 0.2 s with this one, and there are many files and two cores. Both do the same: types are removed, nothing is
// checked (scripts/test.mjs checks the types once, for all tests), and "./x.js" means x.ts if there is no x.js. The
// result is kept in node_modules/.cache, named by the file's contents.
//
// The package under test is loaded only from its sources, even if another package or packages/testing imports it. With
// a second copy from dist, an instance of one copy's class would not be one of the other's.

import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { register } from 'node:module'
import { fileURLToPath, pathToFileURL } from 'node:url'

const cacheDir = fileURLToPath(new URL('../node_modules/.cache/pageferry-tests', import.meta.url))

/** Libraries that scripts/tests/libraries.mjs joins. */
export const joinedLibraries = ['tap', 'typebox']

/** Path of the file. Its directory says whose it is: tap leaves its own modules out of stack traces. */
export function joinedLibrary(name) {
  return `${cacheDir}/node_modules/${name}/index.mjs`
}

/** The package whose test or thread this is. */
let own

export function initialize(program) {
  own = /\/packages\/([a-z-]+)\/(?:test|src)\//.exec(program ?? '')?.[1]
}

/** The source file of an export of the package under test; undefined for another package's. */
function ownSource(specifier) {
  const name = `@pageferry/${own}`
  if (own === undefined || (specifier !== name && !specifier.startsWith(`${name}/`))) return undefined
  const home = new URL(`../packages/${own}/`, import.meta.url)
  const { exports } = JSON.parse(readFileSync(new URL('package.json', home), 'utf8'))
  const target = exports[`.${specifier.slice(name.length)}`]?.default
  if (!target?.startsWith('./dist/src/')) return undefined
  return new URL(target.replace('./dist/', './').replace(/\.js$/, '.ts'), home).href
}

export async function resolve(specifier, context, next) {
  if (joinedLibraries.includes(specifier) && existsSync(joinedLibrary(specifier))) {
    return { url: pathToFileURL(joinedLibrary(specifier)).href, shortCircuit: true }
  }
  const source = ownSource(specifier)
  if (source !== undefined) return { url: source, shortCircuit: true }
  // The second kind is a thread's program: it has no parent.
  const isImport = specifier.startsWith('.') && context.parentURL?.endsWith('.ts')
  if (specifier.endsWith('.js') && (isImport || specifier.startsWith('file:'))) {
    const url = new URL(specifier, context.parentURL)
    const typescript = new URL(url.href.replace(/\.js$/, '.ts'))
    if (!existsSync(url) && existsSync(typescript)) return { url: typescript.href, shortCircuit: true }
  }
  return next(specifier, context)
}

export async function load(url, context, next) {
  if (!url.startsWith('file:') || !url.endsWith('.ts')) return next(url, context)
  return { format: 'module', source: await javascript(fileURLToPath(url)), shortCircuit: true }
}

/** JavaScript of a TypeScript file, from the cache if it is there. */
export async function javascript(path) {
  const source = readFileSync(path, 'utf8')
  // The path belongs to the name because the source map contains it.
  const cached = `${cacheDir}/${createHash('sha256').update(path).update(source).digest('hex').slice(0, 32)}.js`
  if (existsSync(cached)) return readFileSync(cached, 'utf8')
  const { default: ts } = await import('typescript')
  const { outputText } = ts.transpileModule(source, {
    fileName: path,
    compilerOptions: {
      target: ts.ScriptTarget.ES2023,
      module: ts.ModuleKind.ESNext,
      verbatimModuleSyntax: true,
      inlineSourceMap: true,
    },
  })
  mkdirSync(cacheDir, { recursive: true })
  writeFileSync(`${cached}.${process.pid}`, outputText)
  renameSync(`${cached}.${process.pid}`, cached)
  return outputText
}

// --import runs this module, and it also contains the hooks that it registers, which get a thread of their own.
if (!import.meta.url.endsWith('#hooks')) register(`${import.meta.url}#hooks`, { data: process.argv[1] })
