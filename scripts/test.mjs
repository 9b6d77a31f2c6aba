// npm test: runs every test file, each in a process of its own, and counts assertions.
//
//   npm test                              everything, with the linter and the types of the tests
//   npm test -- wire uffd                 only the files whose path contains one of the words
//   npm test -- test/e2e/python.test.ts   only that file
//   PAGEFERRY_SEED=n npm test -- …        repeats the random values of the run that printed this seed
//   PAGEFERRY_SOAK=1 npm test -- …        the long form: every combination, hundreds of moments and seeds
//
// The tests use tap, but not tap's runner. A test file is a program that prints TAP. Running it with node and
// scripts/typescript-loader.mjs takes half a second where `tap run` takes two. That runner would also not know which
// files may run side by side, nor clean up after a test that was killed.
//
// Only one file at a time moves processes outside of a lab (tests/groups.mjs).
//
// A test may be skipped only for a missing kernel feature, and must say so: { skip: 'kernel: no soft-dirty' }. Any
// other skip fails the run, so that no test is forgotten. The first lines of a file may contain:
//
//   // test-timeout-s: 600     it needs longer than its group
//   // test-group: alone       nothing may run beside it, see tests/groups.mjs

import { rmSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { collect, root } from './tests/groups.mjs'
import { removeDeadRuns, removeLeftoversOf, removeRun } from './tests/leftovers.mjs'
import { joinLibraries } from './tests/libraries.mjs'
import { fileMark, makeTemporaryDir, markedEnv, runMark, temporaryDir } from './tests/marks.mjs'
import { killRunning, runCheck, runFile } from './tests/run.mjs'
import { javascript } from './typescript-loader.mjs'

const usage = `usage: npm test [-- WORD...]

Without a word: every test, the linter and the types of the tests.
A word is a part of a test file's path, or the path of one: npm test -- wire uffd

PAGEFERRY_SEED=n  repeats what was random in the run that printed this seed
PAGEFERRY_SOAK=1  the long form: every combination, hundreds of moments and seeds
`

/** Two, on two processors: with three both are busy all the time, tests wait for each other, and the run takes no less. */
const lanes = Math.max(2, Math.floor(availableParallelism() / 2))

const words = process.argv.slice(2)
const seed = process.env.PAGEFERRY_SEED ?? String(Date.now() % 1_000_000)
const started = Date.now()
const totals = { passed: 0, failed: 0, skipped: 0 }
const failures = []
let interrupted = false
let nrFiles = 0

function say(text) {
  process.stdout.write(`${text}\n`)
}

function sayFailure({ path, title, text }) {
  say(`\nFAILED ${path}${title && title !== path ? `: ${title}` : ''}`)
  say(text.replace(/^/gm, '  '))
}

function secondsSince(start) {
  return ((Date.now() - start) / 1000).toFixed(1)
}

async function report(path, results) {
  const start = Date.now()
  const { passed, failed, skipped, failures: found } = await results
  if (interrupted) return
  for (const [key, value] of Object.entries({ passed, failed, skipped })) totals[key] += value
  const own = found.map((failure) => ({ ...failure, path }))
  failures.push(...own)
  const counts = [`${passed} passed`, failed > 0 && `${failed} FAILED`, skipped > 0 && `${skipped} skipped`]
  say(
    `${failed > 0 ? 'FAIL' : 'ok  '} ${path}: ${counts.filter(Boolean).join(', ')} (${secondsSince(start)} s)`,
  )
  // Also at the end: a run that is stopped or cut off has shown them here.
  own.forEach(sayFailure)
}

async function runAndClean(file) {
  const mark = fileMark(nrFiles++)
  await report(file.path, runFile(file, { ...markedEnv(mark), PAGEFERRY_SEED: seed }))
  if (interrupted) return
  const left = await removeLeftoversOf(mark)
  if (left.length > 0) say(`     removed what ${file.path} left behind: ${left.join(', ')}`)
}

/** Runs `nr` jobs at a time. `next` returns a job to begin now, or undefined when there is none for this lane. */
async function inLanes(nr, next) {
  const lane = async () => {
    for (let job = next(); job !== undefined && !interrupted; job = next()) await job()
  }
  await Promise.all(Array.from({ length: nr }, lane))
}

/**
 * One lane runs the files that use this machine itself, one after the other. All lanes share those that stay in a lab.
 */
function nextSideBySide(host, lab) {
  let hostIsBusy = false
  return () => {
    if (hostIsBusy || host.length === 0) {
      const file = lab.shift()
      return file && (() => runAndClean(file))
    }
    hostIsBusy = true
    const file = host.shift()
    return async () => {
      await runAndClean(file)
      hostIsBusy = false
    }
  }
}

async function runAll(files) {
  const inGroup = (wanted) => files.filter(({ group }) => group === wanted)
  const jobs = inGroup('pure').map((file) => () => runAndClean(file))
  if (words.length === 0) {
    jobs.unshift(
      () => report('lint', runCheck('lint', 'biome', ['check', '.'])),
      () => report('types of the tests', runCheck('types of the tests', 'tsc', ['-p', 'test'])),
      () => report('dead exports, files and dependencies', runCheck('knip', 'knip', ['--no-progress'])),
    )
  }
  await inLanes(Math.min(availableParallelism(), 8), () => jobs.shift())
  await inLanes(lanes, nextSideBySide(inGroup('host'), inGroup('lab')))
  for (const file of inGroup('alone')) if (!interrupted) await runAndClean(file)
}

function summarise() {
  failures.forEach(sayFailure)
  const { passed, failed, skipped } = totals
  say(`\n${passed} passed, ${failed} failed, ${skipped} skipped in ${secondsSince(started)} s, seed ${seed}`)
  if (failed > 0) say(`the files of the tests that failed are in ${temporaryDir}`)
  else rmSync(temporaryDir, { recursive: true, force: true })
  process.exitCode = failed > 0 ? 1 : 0
}

async function main() {
  if (words.some((word) => word.startsWith('-'))) {
    say(usage)
    process.exitCode = words.includes('--help') ? 0 : 2
    return
  }
  const files = collect(words)
  if (files.length === 0) {
    say(`no test file matches ${words.join(' ')}\n\n${usage}`)
    process.exitCode = 2
    return
  }
  const left = await removeDeadRuns()
  if (left.length > 0) say(`     removed what an earlier run left behind: ${left.join(', ')}`)
  makeTemporaryDir()
  say(`PAGEFERRY_SEED=${seed}`)
  await joinLibraries()
  // Compiles everything here, once: the test processes then find it in the cache.
  for (const { path } of files) await javascript(join(root, path))
  await runAll(files)
  if (interrupted) await sleep(60_000) // the signal's handler ends this process
  summarise()
}

for (const [signal, status] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
]) {
  process.on(signal, async () => {
    if (interrupted) return
    interrupted = true
    killRunning()
    const left = await removeRun(runMark)
    if (left.length > 0) say(`     removed what the interrupted run left behind: ${left.join(', ')}`)
    rmSync(temporaryDir, { recursive: true, force: true })
    process.exit(status)
  })
}

await main()
