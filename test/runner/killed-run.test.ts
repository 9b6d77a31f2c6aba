// test-group: host
// A run of the tests that is killed in the middle of a file leaves nothing that the next run does not remove.

import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const root = fileURLToPath(new URL('../..', import.meta.url))
const runner = [process.execPath, 'scripts/test.mjs'] as const
/** As long as a lab takes to come up or down on a busy machine. */
const timeoutMs = 30_000

/** False when it has not happened in time. */
async function happens(condition: () => boolean): Promise<boolean> {
  for (const deadline = Date.now() + timeoutMs; !condition() && Date.now() < deadline; ) await sleep(20)
  return condition()
}

function isAlive(pid: number): boolean {
  try {
    return !/\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false
  }
}

t.test('kill -9 of a run in the middle of a file', { timeout: 120_000 }, async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'killed-run-'))
  t.teardown(() => rmSync(directory, { recursive: true }))
  const say = join(directory, 'said')
  // Not below this run's directory: its own is looked for where all runs have theirs.
  const env = { ...process.env, TMPDIR: directory, LEAVES_SAY: say }
  const killed = spawn(runner[0], [runner[1], 'test/runner/leaves.ts'], { cwd: root, env, stdio: 'ignore' })
  t.ok(await happens(() => existsSync(say)), 'the file runs')
  const left = JSON.parse(readFileSync(say, 'utf8'))
  const labDirectory = `/run/pageferry/labs/${left.lab}`
  t.ok(existsSync(labDirectory) && existsSync(left.cgroup) && existsSync(left.directory))
  t.ok(isAlive(left.pid) && isAlive(left.testPid))

  killed.kill('SIGKILL')
  t.ok(await happens(() => !isAlive(left.testPid)), 'the test file does not outlive the runner')
  t.ok(await happens(() => !existsSync(labDirectory)), 'nor does its lab')
  t.ok(existsSync(left.directory), 'the temporary files stay for now')

  const next = spawnSync(runner[0], [runner[1], 'test/runner/passes.ts'], {
    cwd: root,
    env,
    encoding: 'utf8',
  })
  t.equal(next.status, 0, next.stdout + next.stderr)
  t.match(next.stdout, /removed what an earlier run left behind: /)
  t.notOk(isAlive(left.pid), 'the frozen process is gone')
  t.notOk(existsSync(left.cgroup), 'and its cgroup')
  t.notOk(existsSync(left.directory), 'and the temporary files')
})

t.test('a word that stands in no path', async (t) => {
  const { status, stdout } = spawnSync(runner[0], [runner[1], 'no-such-word'], {
    cwd: root,
    encoding: 'utf8',
  })
  t.equal(status, 2)
  t.match(stdout, /no test file matches no-such-word\n\nusage: npm test/)
})
