/*
 * Run by killed-run.test.ts with `node scripts/test.mjs`, and killed together with that: has a lab with a workload in it,
 * a process of this machine that has left every group and session, frozen, and a temporary file. Says so in the file that
 * LEAVES_SAY names.
 */

import { spawn } from 'node:child_process'
import { mkdtempSync, renameSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Freezer } from '@pageferry/checkpoint'
import { withLab } from '@pageferry/lab'

const say = process.env.LEAVES_SAY as string

await withLab(async (lab) => {
  await lab.a.start(['sleep', '1000'])
  const directory = mkdtempSync(join(tmpdir(), 'leaves-'))
  const { pid } = spawn('sleep', ['1000'], { detached: true, stdio: 'ignore' })
  const freezer = Freezer.forProcess(pid as number, `leaves-${process.pid}`)
  freezer.create()
  freezer.add(pid as number)
  freezer.freeze()
  const said = { pid, testPid: process.pid, lab: lab.name, cgroup: freezer.record.path, directory }
  writeFileSync(`${say}.new`, JSON.stringify(said))
  renameSync(`${say}.new`, say)
  await new Promise((resolve) => setTimeout(resolve, 600_000))
})
