// Lets node run the tests' TypeScript as it is: `node --import ./scripts/typescript-loader.mjs file.test.ts`.
//
// tap brings a loader of its own, ts-node, which starts the compiler in every test process: 1.3 s of CPU per file,
// against 0.2 s with this one, and there are many files and two cores. What both do is the same: types are removed,
// nothing is checked (scripts/test.mjs checks the types once, for all tests), and "./x.js" means x.ts where there is
// no x.js. The result is kept in node_modules/.cache, named by the file's contents.

import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { register } from 'node:module'
import { fileURLToPath } from 'node:url'

const cacheDir = fileURLToPath(new URL('../node_modules/.cache/pageferry-tests', import.meta.url))

export async function resolve(specifier, context, next) {
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
  // The path belongs to the name because it stands in the source map.
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

// The module is both what --import runs and the hooks that it registers, which get a thread of their own.
if (!import.meta.url.endsWith('#hooks')) register(`${import.meta.url}#hooks`)
