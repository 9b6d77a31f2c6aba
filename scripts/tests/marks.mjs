// Every process of a test run has a mark in the environment that it was started with, whatever session, namespace or
// parent it has moved to since; its labs have the mark in their names. A mark says which run it is of, and whether that
// run is still there, so that a run can remove what a killed one has left.

import { chmodSync, mkdirSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Field 22 of /proc/PID/stat: the pid alone may be another process's by now. */
function startTimeOf(pid) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]
  } catch {
    return undefined
  }
}

/** Begins with the pid and the start time of the process that runs the tests. */
export const runMark = `r${process.pid}s${startTimeOf(process.pid)}`
export const markName = 'PAGEFERRY_TEST_RUN'
const markPattern = /^r(\d+)s(\d+)(?=-|$)/

/** The mark of one file of this run. */
export function fileMark(nr) {
  return `${runMark}-${nr}`
}

export function markedEnv(mark) {
  return { [markName]: mark, PAGEFERRY_LAB_PREFIX: mark }
}

/** The run that something with this mark, or with this name of a lab or directory, belongs to; null for what is no test's. */
export function runOf(text) {
  const match = markPattern.exec(text)
  return match === null ? null : match[0]
}

/** True while the process that made the mark runs. */
export function isAlive(run) {
  const [, pid, startTime] = markPattern.exec(run) ?? []
  return startTimeOf(pid) === startTime
}

export const temporaryRoot = tmpdir()
export const temporaryPrefix = 'pf-'

/** All temporary files of this run: short, for there are UNIX sockets in it. */
export const temporaryDir = join(temporaryRoot, `${temporaryPrefix}${runMark}`)

export function makeTemporaryDir() {
  mkdirSync(temporaryDir)
  chmodSync(temporaryDir, 0o1777)
  // What tests compile, see packages/testing/src/compile.ts.
  mkdirSync(join(temporaryDir, 'programs'), { mode: 0o755 })
}
