import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { eventually } from '@pageferry/testing/eventually'
import { childrenOf, commandLine, isAlive } from '@pageferry/testing/processes'
import t, { type Test } from 'tap'
import { rehearse } from '../src/rehearsal.js'

/** A rehearsal takes seconds on a machine that is full. */
const patience = { timeoutMs: 60_000, everyMs: 20 }

function temporaryDir(t: Test): string {
  const dir = mkdtempSync(join(tmpdir(), 'pf-rehearsal-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}

/** Keepers of dummies below a directory, and the processes that run the code of a test. */
function processesOf(text: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => commandLine(pid).some((part) => part.includes(text)))
}

/** What this process holds of the host. */
function holdings() {
  const list = (path: string) =>
    readdirSync(path).flatMap((name) => {
      try {
        return [`${name} ${readlinkSync(join(path, name))}`]
      } catch {
        return [] // the descriptor of this very listing
      }
    })
  const tasks = readdirSync('/proc/self/task')
  return {
    fds: list('/proc/self/fd'),
    namespaces: list('/proc/self/ns'),
    cgroup: readFileSync('/proc/self/cgroup', 'latin1'),
    mounts: readFileSync('/proc/self/mountinfo', 'latin1'),
    children: tasks.map((tid) => readFileSync(`/proc/self/task/${tid}/children`, 'latin1')).join(''),
  }
}

for (const what of ['capture', 'restore'] as const) {
  t.test(`after a rehearsal of ${what} nothing is held`, async (t) => {
    const dir = temporaryDir(t)
    // The first one opens what stays: descriptors of the event loop, the addon.
    await rehearse(join(dir, 'first'), what, { passes: 1 })
    const before = holdings()
    await rehearse(join(dir, 'second'), what)
    t.same(holdings(), before)
    await eventually('the end of the keepers', () => processesOf(dir).length === 0, patience)
  })
}

t.test('a rehearsal ends early when something more urgent waits', async (t) => {
  const dir = temporaryDir(t)
  const urgent = new AbortController()
  setTimeout(() => urgent.abort(), 50)
  await rehearse(dir, 'restore', { signal: urgent.signal })
  t.ok(urgent.signal.aborted)
  t.ok(readdirSync(dir).length < 9, 'one keeper for the capture and fewer than eight for restores')
  await eventually('the end of the keepers', () => processesOf(dir).length === 0, patience)
})

const program = fileURLToPath(new URL('../src/rehearsal.ts', import.meta.url))

t.test('kill -9 in the middle of a rehearsal leaves no process', async (t) => {
  for (const what of ['capture', 'restore'] as const) {
    const dir = temporaryDir(t)
    const code = `import(${JSON.stringify(program)}).then(async ({ rehearse }) => {
      for (let pass = 0; ; pass++) await rehearse(${JSON.stringify(dir)} + '/' + pass, '${what}')
    })`
    const child = spawn(process.execPath, [...process.execArgv, '-e', code], { stdio: 'inherit' })
    t.teardown(() => child.kill('SIGKILL'))
    const isKeeper = (pid: number) => pid !== child.pid
    await eventually(
      'a dummy',
      () => processesOf(dir).filter(isKeeper).flatMap(childrenOf).length > 0,
      patience,
    )
    child.kill('SIGKILL')
    const left = processesOf(dir).filter(isKeeper).flatMap(childrenOf)
    await once(child, 'exit')
    await eventually(`${what}: the end of the keeper`, () => processesOf(dir).length === 0, patience)
    await eventually(`${what}: the end of the dummy`, () => !left.some(isAlive), patience)
    t.pass(what)
  }
})
