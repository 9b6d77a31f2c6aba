import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import type { Duplex, Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { eventually } from '@pageferry/testing/eventually'
import t, { type Test } from 'tap'
import * as fds from '../src/fds.js'
import { Heir } from '../src/heir.js'

const program = fileURLToPath(new URL('fixtures/ancestor.ts', import.meta.url))

interface Ancestor {
  process: ChildProcess
  /** Hangs up when it is destroyed. */
  witness: Duplex
  /** Ends when no process has the other end any more. */
  other: Duplex
  heirPid: number
  /** A userfaultfd in the ancestor's table. */
  fd: number
}

async function ancestor(test: Test, armed: 'armed' | 'unarmed', held: 'uffd' | 'nothing'): Promise<Ancestor> {
  const child = spawn(process.execPath, [...process.execArgv, program, armed, held], {
    stdio: ['ignore', 'pipe', 'inherit', 'pipe', 'pipe'],
  })
  const [, , , witness, other] = child.stdio as unknown as [null, null, null, Duplex, Duplex]
  test.teardown(() => {
    child.kill('SIGKILL')
    witness.destroy()
    other.destroy()
  })
  const [line] = await once(child.stdout as Readable, 'data')
  const { pid, fd } = JSON.parse(String(line))
  return { process: child, witness, other, heirPid: pid, fd }
}

/** True also for a zombie that another process has to reap. */
function isGone(pid: number): boolean {
  try {
    return /^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
  } catch {
    return true
  }
}

async function goes(pid: number): Promise<boolean> {
  for (let i = 0; i < 250 && !isGone(pid); i++) await sleep(20)
  return isGone(pid)
}

async function kill9({ process: child }: Ancestor): Promise<void> {
  const exit = once(child, 'exit')
  child.kill('SIGKILL')
  await exit
}

const openFds = (pid: number) =>
  readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`))

t.test('shares the table while the process lives, has its userfaultfds afterwards', async (t) => {
  const all = await ancestor(t, 'armed', 'uffd')
  const { heirPid, fd, other } = all
  const pid = all.process.pid as number
  t.equal(fds.kcmp(pid, heirPid, fds.KCMP_FILES, 0, 0), 0, 'one table')
  t.not(fds.kcmp(pid, heirPid, fds.KCMP_VM, 0, 0), 0, 'but not the memory')
  const comm = () => readFileSync(`/proc/${heirPid}/comm`, 'utf8')
  await eventually('it has started', () => comm() === 'pf-heir\n')
  const resident = Number(/^RssAnon:\s+(\d+)/m.exec(readFileSync(`/proc/${heirPid}/status`, 'utf8'))?.[1])
  t.ok(resident < 200, `${resident} KiB of memory of its own`)

  const heir = new Heir(fds.pidfdOpen(heirPid))
  const ended = once(other.resume(), 'end')
  await kill9(all)
  await ended
  t.same(new Set(openFds(heirPid)).size, 2, 'the witness and the userfaultfd')
  const found = heir.takeUserfaultfd(fd)
  t.equal(readlinkSync(`/proc/self/fd/${found}`), 'anon_inode:[userfaultfd]')
  t.equal(heir.takeUserfaultfd(3), undefined, 'not one')
  t.equal(heir.takeUserfaultfd(1000), undefined, 'not open')
  const again = fds.pidfdOpen(heirPid)
  heir.end()
  t.ok(await goes(heirPid))
  const dead = new Heir(again)
  t.equal(dead.takeUserfaultfd(fd), undefined, 'no heir any more')
  dead.end()
  closeSync(found as number)
})

t.test('nobody comes for it: it ends when the witness hangs up', async (t) => {
  const all = await ancestor(t, 'armed', 'uffd')
  await kill9(all)
  await sleep(200)
  t.notOk(isGone(all.heirPid))
  all.witness.destroy()
  t.ok(await goes(all.heirPid))
})

t.test('ends with its process when nobody knows it, or when there is nothing to hold', async (t) => {
  for (const [armed, held] of [
    ['unarmed', 'uffd'],
    ['armed', 'nothing'],
  ] as const) {
    const all = await ancestor(t, armed, held)
    await kill9(all)
    t.ok(await goes(all.heirPid), `${armed}, ${held}`)
  }
})

t.test('signals of the process do not reach it', async (t) => {
  const all = await ancestor(t, 'armed', 'uffd')
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1', 'SIGCHLD'] as const) {
    process.kill(all.heirPid, signal)
  }
  await sleep(100)
  t.notOk(isGone(all.heirPid))
  await kill9(all)
  await sleep(100)
  t.notOk(isGone(all.heirPid), 'and it still does what it is for')
})
