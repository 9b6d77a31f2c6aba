import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { rehearse } from '../src/rehearsal.js'

const timeoutMs = 10_000

function temporaryDir(t: Test): string {
  const dir = mkdtempSync(join(tmpdir(), 'pf-rehearsal-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}

/** Processes that have the text in their command line, zombies excluded. */
function processesOf(text: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(text)
      } catch {
        return false
      }
    })
}

/** The program of a dummy, in the pid namespace of a keeper that `dir` belongs to: by the parent. */
function dummiesBelow(keepers: number[]): number[] {
  return keepers.flatMap((keeper) => {
    try {
      const text = readFileSync(`/proc/${keeper}/task/${keeper}/children`, 'latin1')
      return text.split(' ').filter(Boolean).map(Number)
    } catch {
      return []
    }
  })
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

async function until(condition: () => boolean): Promise<boolean> {
  for (const deadline = Date.now() + timeoutMs; Date.now() < deadline; await sleep(5))
    if (condition()) return true
  return false
}

for (const what of ['capture', 'restore'] as const) {
  t.test(`after a rehearsal of ${what} nothing is held`, async (t) => {
    const dir = temporaryDir(t)
    // The first one opens what stays: descriptors of the event loop, the addon.
    await rehearse(join(dir, 'first'), what, AbortSignal.abort())
    const before = holdings()
    await rehearse(join(dir, 'second'), what)
    t.same(holdings(), before)
    t.ok(await until(() => processesOf(dir).length === 0), 'the keepers end')
  })
}

t.test('a rehearsal ends early when something more urgent waits', async (t) => {
  const dir = temporaryDir(t)
  const urgent = new AbortController()
  setTimeout(() => urgent.abort(), 50)
  await rehearse(dir, 'restore', urgent.signal)
  t.ok(urgent.signal.aborted)
  t.ok(readdirSync(dir).length < 9, 'one keeper for the capture and fewer than eight for restores')
  t.ok(await until(() => processesOf(dir).length === 0))
})

const program = fileURLToPath(new URL('../src/rehearsal.ts', import.meta.url))

t.test('kill -9 in the middle of a rehearsal leaves no process', async (t) => {
  for (const what of ['capture', 'restore'] as const) {
    const dir = temporaryDir(t)
    const code = `import(${JSON.stringify(program)}).then(async ({ rehearse }) => {
      for (let pass = 0; ; pass++) await rehearse(${JSON.stringify(dir)} + '/' + pass, '${what}')
    })`
    const child = spawn(process.execPath, [...process.execArgv, '-e', code], { stdio: 'inherit' })
    const isKeeper = (pid: number) => pid !== child.pid
    await until(() => dummiesBelow(processesOf(dir).filter(isKeeper)).length > 0)
    child.kill('SIGKILL')
    const left = dummiesBelow(processesOf(dir).filter(isKeeper))
    await once(child, 'exit')
    t.ok(await until(() => processesOf(dir).length === 0), `${what}: the keeper ends`)
    t.ok(await until(() => left.every((pid) => isGone(pid))), 'and its dummy')
  }
})

function isGone(pid: number): boolean {
  try {
    return /\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
  } catch {
    return true
  }
}
