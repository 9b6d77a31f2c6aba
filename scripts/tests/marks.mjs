// Every process of a test run has a mark in its initial environment. So it is found in whatever session, namespace or
// parent it has moved to. The labs of a run have the mark in their names. A mark names its run and shows whether that
// run still exists, so that a run can remove the leftovers of a killed one.

import { chmodSync, mkdirSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Field 22 of /proc/PID/stat: the pid alone may belong to another process by now. */
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

/** The run of a mark, or of a lab or directory with this name; null if it does not belong to a test. */
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

/** All temporary files of this run. The path is short, because it contains UNIX sockets. */
export const temporaryDir = join(temporaryRoot, `${temporaryPrefix}${runMark}`)

export function makeTemporaryDir() {
  mkdirSync(temporaryDir)
  chmodSync(temporaryDir, 0o1777)
  // Programs that tests compile, see packages/testing/src/compile.ts.
  mkdirSync(join(temporaryDir, 'programs'), { mode: 0o755 })
}
