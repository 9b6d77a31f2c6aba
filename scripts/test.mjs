// npm test: runs every test file, each in a process of its own, and counts what they assert.
//
//   npm test                  everything, with the linter and the types of the tests
//   npm test -- wire uffd     only the files whose path contains one of the words
//
// The tests are tap's, but tap's runner is not used: a test file is a program that prints TAP, and running it with
// node and scripts/typescript-loader.mjs takes half a second where `tap run` takes two. That runner would also not
// know which files trace processes and must run alone, nor clean up after a test that was killed.
//
// A test may be skipped only for what the kernel lacks, and says so: { skip: 'kernel: no soft-dirty' }. Any other skip
// fails the run, so that nothing is forgotten. A file that needs longer than its group says so in its first lines:
// "// test-timeout-s: 600".

import { spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Parser } from 'tap-parser'
import { killLeftovers, markedEnv, removeLabs } from './test-cleanup.mjs'
import { javascript } from './typescript-loader.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const words = process.argv.slice(2)

/** Pure packages: any number of files at once. Everything else traces, freezes or kills processes, or measures time. */
const parallelPackages = ['base', 'images', 'pages', 'migration', 'wire']
const timeoutS = { parallel: 120, serial: 180, 'test/': 600 }

const totals = { passed: 0, failed: 0, skipped: 0 }
const failures = []
const running = new Set()
let interrupted = false

function filesBelow(directory) {
  if (!existsSync(directory)) return []
  return readdirSync(directory, { recursive: true })
    .filter((name) => name.endsWith('.test.ts') && !name.includes('node_modules'))
    .map((name) => relative(root, join(directory, name)))
    .sort()
}

function collect() {
  const packages = readdirSync(join(root, 'packages'))
  const inPackages = (names) => names.flatMap((name) => filesBelow(join(root, 'packages', name, 'test')))
  const serial = packages.filter((name) => !parallelPackages.includes(name))
  const wanted = (path) => words.length === 0 || words.some((word) => path.includes(word))
  return {
    parallel: inPackages(parallelPackages).filter(wanted),
    serial: [...inPackages(serial), ...filesBelow(join(root, 'test'))].filter(wanted),
  }
}

function limitOf(path, group) {
  const head = readFileSync(join(root, path), 'utf8').slice(0, 2000)
  const own = /^\/\/ test-timeout-s: (\d+)$/m.exec(head)?.[1]
  return Number(own ?? (path.startsWith('test/') ? timeoutS['test/'] : timeoutS[group]))
}

/** Runs a program in a process group of its own and gives its output to the two callbacks. */
function run(command, args, { env, limitMs, onStdout, onStderr }) {
  const child = spawn(command, args, {
    cwd: root,
    detached: true,
    env: { ...process.env, ...markedEnv, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  running.add(child)
  child.stdout.on('data', onStdout)
  child.stderr.on('data', onStderr)
  return new Promise((resolve) => {
    let timedOut = false
    const end = (code, signal) => {
      clearTimeout(timer)
      clearTimeout(drain)
      running.delete(child)
      killGroup(child)
      resolve({ code, signal, timedOut })
    }
    const timer = setTimeout(() => {
      timedOut = true
      killGroup(child)
    }, limitMs)
    let drain
    child.once('error', (error) => end(error.code, null))
    // A background process that inherited the pipes would keep "close" away.
    child.once('exit', (code, signal) => {
      drain = setTimeout(() => end(code, signal), 500)
      child.once('close', () => end(code, signal))
    })
  })
}

function killGroup(child) {
  try {
    process.kill(-child.pid, 'SIGKILL')
  } catch {
    // nothing left of it
  }
}

/** Counts leaf assertions; the line that a subtest leaves in its parent is not one. */
function count(parser, result, path = []) {
  let child = null
  parser.on('child', (sub) => {
    child = { name: sub.name, failed: result.failed }
    count(sub, result, [...path, sub.name])
  })
  parser.on('assert', (assertion) => {
    const summaryOf = child
    child = null
    const bad = !assertion.ok && !assertion.todo && !assertion.skip
    if (summaryOf !== null && (!bad || result.failed > summaryOf.failed)) return
    if (assertion.skip || assertion.todo) {
      const reason = assertion.skip || assertion.todo
      result.skipped += 1
      if (!/kernel/i.test(String(reason))) {
        note(result, [...path, assertion.name], `skipped without a reason in the kernel: ${reason}`)
      }
    } else if (assertion.ok) result.passed += 1
    else note(result, [...path, assertion.name], formatDiagnostics(assertion.diag))
  })
  parser.on('bailout', (reason) => note(result, path, `bailed out: ${reason}`))
}

function note(result, path, text) {
  result.failed += 1
  result.failures.push({ title: path.filter(Boolean).join(' > '), text })
}

function formatDiagnostics(diag) {
  if (!diag) return ''
  const { at, source, diff, stack, found, wanted, ...rest } = diag
  const place = at?.fileName && `${relative(root, at.fileName.replace('file://', ''))}:${at.lineNumber}`
  const shown = diff === undefined && found !== undefined ? { wanted, found, ...rest } : rest
  const fields = Object.entries(shown).map(
    ([key, value]) => `${key}: ${typeof value === 'string' ? value : JSON.stringify(value)}`,
  )
  return [place, source?.trimEnd(), diff?.trimEnd(), ...fields, stack?.trimEnd()].filter(Boolean).join('\n')
}

async function runFile(path, group) {
  const result = { path, passed: 0, failed: 0, skipped: 0, failures: [] }
  const started = Date.now()
  const seconds = limitOf(path, group)
  const parser = new Parser()
  count(parser, result)
  let stderr = ''
  const outcome = await run(
    process.execPath,
    ['--enable-source-maps', '--import', './scripts/typescript-loader.mjs', path],
    {
      // tap ends a file that takes too long by itself and says which test it was in; the kill comes after that.
      env: { TAP: '1', TAP_TIMEOUT: String(seconds), PAGEFERRY_LOG: process.env.PAGEFERRY_LOG ?? 'silent' },
      limitMs: (seconds + 10) * 1000,
      onStdout: (bytes) => parser.write(bytes),
      onStderr: (bytes) => {
        stderr = (stderr + bytes).slice(-8000)
      },
    },
  )
  parser.end()
  if (interrupted) return
  if (result.failed === 0 && (outcome.code !== 0 || outcome.timedOut)) {
    const how = outcome.timedOut
      ? `no end after ${seconds} s`
      : `ended with ${outcome.signal ?? `status ${outcome.code}`}`
    note(result, [path], `${how}\n${stderr}`)
  } else if (result.passed + result.failed + result.skipped === 0) note(result, [path], 'tested nothing')
  else if (result.failed > 0 && stderr !== '') result.failures.at(-1).text += `\nstandard error:\n${stderr}`
  report(result, started)
}

/** A check that is no test file: passes or fails as one. */
async function runCheck(title, program, args) {
  const result = { path: title, passed: 0, failed: 0, skipped: 0, failures: [] }
  const started = Date.now()
  let output = ''
  const keep = (bytes) => {
    output += bytes
  }
  const { code } = await run(join(root, 'node_modules/.bin', program), args, {
    limitMs: 180_000,
    onStdout: keep,
    onStderr: keep,
  })
  if (interrupted) return
  if (code === 0) result.passed += 1
  else note(result, [title], output.slice(-8000))
  report(result, started)
}

function report(result, started) {
  for (const key of Object.keys(totals)) totals[key] += result[key]
  failures.push(...result.failures.map((failure) => ({ ...failure, path: result.path })))
  const seconds = ((Date.now() - started) / 1000).toFixed(1)
  const skipped = result.skipped > 0 ? `, ${result.skipped} skipped` : ''
  const failed = result.failed > 0 ? `, ${result.failed} FAILED` : ''
  const mark = result.failed > 0 ? 'FAIL' : 'ok  '
  process.stdout.write(`${mark} ${result.path}: ${result.passed} passed${failed}${skipped} (${seconds} s)\n`)
}

async function clean(after) {
  if (interrupted && after !== null) return
  const left = [...(await removeLabs(root)), ...(await killLeftovers())]
  if (left.length > 0) {
    process.stdout.write(
      `     removed what ${after ?? 'the interrupted run'} left behind: ${left.join(', ')}\n`,
    )
  }
}

async function main() {
  const { parallel, serial } = collect()
  // Compiled here, once: the test processes then find everything in the cache.
  for (const path of [...parallel, ...serial]) await javascript(join(root, path))
  const jobs = parallel.map((path) => () => runFile(path, 'parallel'))
  if (words.length === 0) {
    jobs.unshift(
      () => runCheck('lint', 'biome', ['check', '.']),
      () => runCheck('types of the tests', 'tsc', ['-p', 'test']),
    )
  }
  const workers = Array.from({ length: Math.min(availableParallelism(), 8) }, async () => {
    for (let job = jobs.shift(); job !== undefined && !interrupted; job = jobs.shift()) await job()
  })
  await Promise.all(workers)
  await clean('the pure packages')
  for (const path of serial) {
    if (interrupted) break
    await runFile(path, 'serial')
    await clean(path)
  }
  if (interrupted) return
  for (const { path, title, text } of failures) {
    process.stdout.write(`\nFAILED ${path}${title && title !== path ? `: ${title}` : ''}\n`)
    process.stdout.write(`${text.replace(/^/gm, '  ')}\n`)
  }
  const { passed, failed, skipped } = totals
  if (passed + failed + skipped === 0) {
    process.stdout.write(`no test file matches ${words.join(' ')}\n`)
    process.exitCode = 2
    return
  }
  process.exitCode = failed > 0 ? 1 : 0
  process.stdout.write(`\n${passed} passed, ${failed} failed, ${skipped} skipped\n`)
}

for (const [signal, status] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
]) {
  process.on(signal, async () => {
    if (interrupted) return
    interrupted = true
    for (const child of running) killGroup(child)
    await clean(null)
    process.exit(status)
  })
}

await main()
