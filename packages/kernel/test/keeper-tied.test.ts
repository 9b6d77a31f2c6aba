import { closeSync, existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive } from '@pageferry/testing/processes'
import t from 'tap'
import * as fds from '../src/fds.js'
import { type KeeperClient, launchKeeper } from '../src/keeper.js'

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
    t.ok(isAlive(pid))
    // As the death of the worker would.
    keeper.close()
    await eventually('the end of the process', () => !isAlive(pid))
    await eventually('the end of the keeper', () => !existsSync(join(dir, 'keeper.sock')))
  })
}

t.test('tied, without a process', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pf-tied-'))
  t.teardown(() => rmSync(dir, { recursive: true }))
  const keeper = await launchKeeper({ dir, tied: true })
  keeper.close()
  await eventually('its end', () => !existsSync(join(dir, 'keeper.sock')))
  t.pass()
})
