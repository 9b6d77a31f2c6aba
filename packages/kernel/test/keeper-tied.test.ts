import { closeSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import * as fds from '../src/fds.js'
import { type KeeperClient, launchKeeper } from '../src/keeper.js'

const timeoutMs = 5_000

function isGone(pid: number): boolean {
  try {
    return /\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
  } catch {
    return true
  }
}

async function until(condition: () => boolean): Promise<boolean> {
  for (const deadline = Date.now() + timeoutMs; Date.now() < deadline; await sleep(5))
    if (condition()) return true
  return false
}

function spawnSkeleton(keeper: KeeperClient): number {
  const [ours, theirs] = fds.socketpair(fds.SOCK_SEQPACKET)
  const { pid, pidfd } = keeper.spawn({ pid: 0, socketFd: theirs })
  fds.recv(ours, 1, 0, 1000)
  for (const fd of [ours, theirs, pidfd]) closeSync(fd)
  return pid
}

for (const newPidNamespace of [false, true]) {
  t.test(`tied, pid namespace of its own: ${newPidNamespace}`, async (t) => {
    const dir = mkdtempSync(join(tmpdir(), 'pf-tied-'))
    t.teardown(() => rmSync(dir, { recursive: true }))
    const keeper = await launchKeeper({ dir, newPidNamespace, tied: true })
    const pid = spawnSkeleton(keeper)
    t.notOk(isGone(pid))
    // As the death of the worker would.
    keeper.close()
    t.ok(await until(() => isGone(pid)), 'the process ends with the last client')
    t.ok(await until(() => !existsSync(join(dir, 'keeper.sock'))), 'and the keeper with it')
  })
}

t.test('tied, without a process', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pf-tied-'))
  t.teardown(() => rmSync(dir, { recursive: true }))
  const keeper = await launchKeeper({ dir, tied: true })
  keeper.close()
  t.ok(await until(() => !existsSync(join(dir, 'keeper.sock'))))
})
