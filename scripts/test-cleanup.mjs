// Finds and removes what a test run left behind. Every process of a run has its mark in the environment it was started
// with, whatever session, namespace or parent it has moved to since; nothing else on the machine is touched.

import { existsSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'

export const runMark = `t${process.pid}`
export const markedEnv = { PAGEFERRY_TEST_RUN: runMark, PAGEFERRY_LAB_PREFIX: runMark }

const needle = Buffer.from(`PAGEFERRY_TEST_RUN=${runMark}\0`)

/** How long processes may take to end by themselves after their test: what they were told to do is on its way. */
const graceMs = 1000
const killTimeoutMs = 10_000

function leftovers() {
  const found = []
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry) || Number(entry) === process.pid) continue
    try {
      if (!Buffer.concat([readFileSync(`/proc/${entry}/environ`), Buffer.from('\0')]).includes(needle))
        continue
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

/** Kills what is left of the run's tests and returns a description of each process, for the report. */
export async function killLeftovers() {
  const grace = Date.now() + graceMs
  let left = leftovers()
  while (left.length > 0 && Date.now() < grace) {
    await sleep(50)
    left = leftovers()
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
    // Killed first, thawed then: a frozen process must not run again.
    for (const cgroup of left.flatMap((process) => process.cgroups)) {
      cgroups.add(cgroup)
      write(join(cgroup, 'freezer.state'), 'THAWED')
      write(join(cgroup, 'cgroup.freeze'), '0')
    }
    await sleep(20)
    left = leftovers()
  }
  for (const cgroup of cgroups) {
    try {
      rmdirSync(cgroup)
    } catch {
      // removed by its owner, or it is a lab's and goes with the lab
    }
  }
  return said
}

/** Takes the run's labs down. */
export async function removeLabs(root) {
  const labs = existsSync('/run/pageferry/labs') ? readdirSync('/run/pageferry/labs') : []
  const ours = labs.filter((name) => name.startsWith(`${runMark}-`))
  if (ours.length === 0) return []
  const { takeDown } = await import(pathToFileURL(join(root, 'packages/lab/dist/src/index.js')).href)
  for (const name of ours) await takeDown(name)
  return ours.map((name) => `lab ${name}`)
}
