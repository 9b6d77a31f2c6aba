// Runs one test file, or one checking program, in a process group of its own.

import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { root } from './groups.mjs'
import { temporaryDir } from './marks.mjs'
import { TapResults } from './tap-results.mjs'

const checkLimitS = 180
/** Time after a file's own limit, in which tap reports the unfinished test. */
const graceS = 10
/** A background process that inherited the pipes would delay "close". */
const drainMs = 500
const maxStderrChars = 8000

const compileCache = join(root, 'node_modules/.cache/pageferry-tests/v8')

const running = new Set()

export function killRunning() {
  for (const child of running) killGroup(child)
}

function killGroup(child) {
  try {
    process.kill(-child.pid, 'SIGKILL')
  } catch {
    // nothing left of it
  }
}

/** Passes the program's output to the two callbacks. It dies with this process, however that ends. */
function run(command, args, { env, limitMs, onStdout, onStderr }) {
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', command, ...args], {
    cwd: root,
    detached: true,
    // Services and workers start hundreds of times. From Node 22 on their code is compiled once.
    env: { NODE_COMPILE_CACHE: compileCache, ...process.env, TMPDIR: temporaryDir, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  running.add(child)
  child.stdout.on('data', onStdout)
  child.stderr.on('data', onStderr)
  return new Promise((resolve) => {
    let timedOut = false
    let drain
    const timer = setTimeout(() => {
      timedOut = true
      killGroup(child)
    }, limitMs)
    const end = (code, signal) => {
      clearTimeout(timer)
      clearTimeout(drain)
      running.delete(child)
      killGroup(child)
      resolve({ code, signal, timedOut })
    }
    child.once('error', (error) => end(error.code, null))
    child.once('exit', (code, signal) => {
      drain = setTimeout(() => end(code, signal), drainMs)
      child.once('close', () => end(code, signal))
    })
  })
}

/** @param env marks the file's processes, see marks.mjs */
export async function runFile({ path, limitS }, env) {
  const results = new TapResults()
  let stderr = ''
  const outcome = await run(
    process.execPath,
    ['--enable-source-maps', '--import', './scripts/typescript-loader.mjs', path],
    {
      env: {
        ...{ TAP: '1', TAP_TIMEOUT: String(limitS), PAGEFERRY_LOG: process.env.PAGEFERRY_LOG ?? 'silent' },
        ...env,
      },
      limitMs: (limitS + graceS) * 1000,
      onStdout: (bytes) => results.write(bytes),
      onStderr: (bytes) => {
        stderr = (stderr + bytes).slice(-maxStderrChars)
      },
    },
  )
  if (results.failed === 0 && (outcome.code !== 0 || outcome.timedOut)) {
    const how = outcome.timedOut
      ? `no end after ${limitS} s`
      : `ended with ${outcome.signal ?? `status ${outcome.code}`}`
    results.fail(path, `${how}\n${stderr}`)
  } else if (results.total === 0) results.fail(path, 'tested nothing')
  else if (results.failed > 0 && stderr !== '') results.failures.at(-1).text += `\nstandard error:\n${stderr}`
  results.end()
  return results
}

/** Runs a check that is no test file: it passes or fails as a whole. */
export async function runCheck(title, program, args) {
  const results = new TapResults()
  let output = ''
  const keep = (bytes) => {
    output += bytes
  }
  const { code } = await run(join(root, 'node_modules/.bin', program), args, {
    limitMs: checkLimitS * 1000,
    onStdout: keep,
    onStderr: keep,
  })
  if (code === 0) results.passed += 1
  else results.fail(title, output.slice(-maxStderrChars))
  return results
}
