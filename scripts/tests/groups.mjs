// Lists the test files, and decides which of them may run side by side.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../..', import.meta.url))

/** Pure packages: any number of files at once. */
const purePackages = ['base', 'images', 'pages', 'migration', 'wire']

/** Time limit of a file, in seconds, unless its first lines say "// test-timeout-s: N". */
const limitS = { pure: 120, host: 180, lab: 600, alone: 600 }

function filesBelow(directory) {
  if (!existsSync(join(root, directory))) return []
  return readdirSync(join(root, directory), { recursive: true })
    .filter((name) => name.endsWith('.test.ts') && !name.includes('node_modules'))
    .map((name) => join(directory, name))
}

/**
 * pure   touches nothing of the machine
 * host   traces, freezes or kills processes of this machine: one at a time
 * lab    does so only in labs of its own (own pid, mount and network namespaces, own cgroups): beside any file but one
 *        that runs alone
 * alone  measures time, or needs a resource that two runs cannot share
 */
function groupOf(path, head) {
  const own = /^\/\/ test-group: (pure|host|lab|alone)$/m.exec(head)?.[1]
  if (own !== undefined) return own
  const [top, name] = path.split('/')
  if (top === 'test') return 'lab'
  return purePackages.includes(name) ? 'pure' : 'host'
}

function describe(path) {
  const head = readFileSync(join(root, path), 'utf8').slice(0, 2000)
  const group = groupOf(path, head)
  const own = /^\/\/ test-timeout-s: (\d+)$/m.exec(head)?.[1]
  return { path, group, limitS: Number(own ?? limitS[group]) }
}

/**
 * Files whose path contains one of the words; all files without words. A word that is the path of a file stands for
 * that file alone. The slowest, by their limits, come first: two that run side by side then end at about the same time.
 */
export function collect(words) {
  const packages = readdirSync(join(root, 'packages'))
  const all = [...packages.map((name) => join('packages', name, 'test')), 'test'].flatMap(filesBelow)
  const exact = words.filter((word) => word.endsWith('.ts') && existsSync(join(root, word)))
  const parts = words.filter((word) => !exact.includes(word))
  const wanted = all.filter((path) => words.length === 0 || parts.some((part) => path.includes(part)))
  const named = exact.map((word) => relative(root, join(root, word)))
  return [...new Set([...named, ...wanted])]
    .map(describe)
    .sort((a, b) => b.limitS - a.limitS || (a.path < b.path ? -1 : 1))
}
