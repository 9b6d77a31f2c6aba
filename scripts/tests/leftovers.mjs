// Finds and removes leftovers of test files: processes, frozen or not, their cgroups, labs and temporary files. Marks
// (marks.mjs) tell what belongs to a test; nothing else on the machine is touched.

import { existsSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { root } from './groups.mjs'
import { isAlive, markName, runOf, temporaryPrefix, temporaryRoot } from './marks.mjs'

/** How long processes may take to end by themselves after their test: their last command is under way. */
const graceMs = 1000
const killTimeoutMs = 10_000

const labsDir = '/run/pageferry/labs'

/** Processes whose mark `isWanted` accepts. */
function processesOf(isWanted) {
  const found = []
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry) || Number(entry) === process.pid) continue
    try {
      const variables = readFileSync(`/proc/${entry}/environ`, 'latin1').split('\0')
      const mark = variables.find((each) => each.startsWith(`${markName}=`))?.slice(markName.length + 1)
      if (mark === undefined || !isWanted(mark)) continue
      const comm = readFileSync(`/proc/${entry}/comm`, 'utf8').trim()
      found.push({ pid: Number(entry), comm, cgroups: cgroupsOf(entry) })
    } catch {
      // gone, or a kernel thread
    }
  }
  return found
}

/** Directories of the process's cgroups that pageferry made. */
function cgroupsOf(pid) {
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8')
  return readFileSync(`/proc/${pid}/cgroup`, 'utf8')
    .trim()
    .split('\n')
    .flatMap((line) => {
      const [, controllers, path] = /^\d+:([^:]*):(.*)$/.exec(line) ?? []
      if (!path?.includes('/pageferry')) return []
      const type = controllers === '' ? ' - cgroup2 ' : ' - cgroup '
      const mount = mounts
        .split('\n')
        .find(
          (row) =>
            row.includes(type) &&
            (controllers === '' || row.split(' ').at(-1).split(',').includes(controllers)),
        )
      return mount === undefined ? [] : [join(mount.split(' ')[4], path)]
    })
}

function write(path, text) {
  try {
    if (existsSync(path)) writeFileSync(path, text)
  } catch {
    // removed meanwhile
  }
}

/** Kills the processes and returns a description of each, for the report. */
async function killProcesses(isWanted, patienceMs) {
  const grace = Date.now() + patienceMs
  let left = processesOf(isWanted)
  while (left.length > 0 && Date.now() < grace) {
    await sleep(50)
    left = processesOf(isWanted)
  }
  const said = left.map(({ pid, comm }) => `${comm} (${pid})`)
  const cgroups = new Set()
  const deadline = Date.now() + killTimeoutMs
  while (left.length > 0 && Date.now() < deadline) {
    for (const { pid } of left) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {
        // gone
      }
    }
    // Kill first, then thaw: a frozen process must not run again.
    for (const cgroup of left.flatMap((process) => process.cgroups)) {
      cgroups.add(cgroup)
      write(join(cgroup, 'freezer.state'), 'THAWED')
      write(join(cgroup, 'cgroup.freeze'), '0')
    }
    await sleep(20)
    left = processesOf(isWanted)
  }
  for (const cgroup of cgroups) {
    try {
      rmdirSync(cgroup)
    } catch {
      // its owner removed it, or it is a lab's and goes with the lab
    }
  }
  return said
}

async function removeLabs(isWanted) {
  const names = existsSync(labsDir) ? readdirSync(labsDir).filter(isWanted) : []
  if (names.length === 0) return []
  const { takeDown } = await import(pathToFileURL(join(root, 'packages/lab/dist/src/index.js')).href)
  for (const name of names) await takeDown(name)
  return names.map((name) => `lab ${name}`)
}

/** Removes the leftovers of the file with this mark, which has ended; returns what they were. */
export async function removeLeftoversOf(mark) {
  const isWanted = (each) => each === mark
  const labs = await removeLabs((name) => name.startsWith(`${mark}-`))
  return [...labs, ...(await killProcesses(isWanted, graceMs))]
}

/** Removes all leftovers of a run so far. */
export async function removeRun(run) {
  const isWanted = (text) => runOf(text) === run
  return [...(await removeLabs(isWanted)), ...(await killProcesses(isWanted, 0))]
}

/**
 * Removes leftovers of killed runs, and files of failed ones. A run that is still going, perhaps in another checkout,
 * is not touched.
 */
export async function removeDeadRuns() {
  const isDead = (text) => {
    const run = runOf(text)
    return run !== null && !isAlive(run)
  }
  const said = [...(await removeLabs(isDead)), ...(await killProcesses(isDead, 0))]
  for (const name of readdirSync(temporaryRoot)) {
    if (!name.startsWith(temporaryPrefix) || !isDead(name.slice(temporaryPrefix.length))) continue
    rmSync(join(temporaryRoot, name), { recursive: true, force: true })
    said.push(join(temporaryRoot, name))
  }
  return said
}
