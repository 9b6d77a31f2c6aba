// File locks: on a file system of each host's own they move; on one that both share, those move that two may have at once.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { HostName, Lab } from '@pageferry/lab'
import { failureOf } from '@pageferry/service/client'
import { baseSeed } from '@pageferry/testing/seeds'
import type { Test } from 'tap'
import { modes, users } from '../support/combinations.js'
import { inLab } from '../support/in-lab.js'
import { moveOnce, Workload } from '../support/workload.js'

const names = ['flock', 'flock-shared', 'posix', 'posix-shared', 'ofd', 'ofd-shared']

/** A directory with the files; each host's own if `isPrivate`, as two machines have it. */
async function directoryOf(t: Test, lab: Lab, isPrivate: boolean): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), 'pageferry-locks-'))
  t.teardown(() => rmSync(directory, { recursive: true }))
  const make = names.map((name) => `: > ${directory}/${name}; chmod 666 ${directory}/${name}`).join('; ')
  const mount = isPrivate ? `mount -t tmpfs -o mode=755 none ${directory} && ` : ''
  for (const host of [lab.a, lab.b]) {
    const { status, stderr } = await host.run(['sh', '-c', `chmod 755 ${directory}; ${mount}${make}`], {
      cwd: '/',
    })
    if (status !== 0) throw new Error(stderr)
  }
  if (isPrivate) {
    t.teardown(async () => {
      for (const host of [lab.a, lab.b]) await host.run(['umount', '-l', directory], { cwd: '/' })
    })
  }
  return directory
}

/** Whether another process on the host can have the lock. */
async function isFree(lab: Lab, host: HostName, path: string): Promise<boolean> {
  return (await lab.host(host).run(['flock', '--nonblock', path, 'true'], { cwd: '/' })).status === 0
}

await inLab('file locks', async (t, lab) => {
  await t.test('two file systems: there and back', async (t) => {
    const directory = await directoryOf(t, lab, true)
    const path = join(directory, 'flock')
    const { uid } = users[baseSeed % users.length]
    const workload = await Workload.start(lab, 'locks', { args: [directory], uid })
    await workload.steps(3)

    const stop = join(workload.directory, 'stop')
    const holding = `until [ -e ${stop} ]; do sleep 0.05; done`
    const holder = lab.b.run(['flock', path, 'sh', '-c', holding], { cwd: '/' })
    while (await isFree(lab, 'b', path));
    const result = await workload.tryMigrate()
    t.match(failureOf(result), { code: 'REFUSED', message: /flock: a lock on it is held on the destination/ })
    await workload.steps(3)
    t.notOk(await isFree(lab, 'a', path), 'the original has never let go')
    writeFileSync(stop, '')
    await holder
    const failed = await workload.tryMigrate({ injectFault: 'destination-error-restore' })
    t.notOk(failed.migrated)
    await workload.steps(3)
    t.ok(await isFree(lab, 'b', path), 'nothing is left behind')
    t.notOk(await isFree(lab, 'a', path))

    for (const mode of modes) {
      const { host } = workload
      t.ok(await isFree(lab, host === 'a' ? 'b' : 'a', path))
      await workload.migrate({ mode })
      await workload.steps(3)
      t.notOk(await isFree(lab, workload.host, path), 'taken again')
      t.ok(await isFree(lab, host, path), 'and let go where it was')
    }
    await workload.finish()
  })

  await t.test('one file system: shared locks', async (t) => {
    await moveOnce(lab, 'locks', { args: [await directoryOf(t, lab, false), 'shared'] })
  })

  await t.test('one file system: an exclusive lock is refused, and the original keeps it', async (t) => {
    const directory = await directoryOf(t, lab, false)
    const workload = await Workload.start(lab, 'locks', { args: [directory] })
    await workload.steps(3)
    const result = await workload.tryMigrate()
    t.notOk(result.migrated)
    t.match(failureOf(result), { code: 'REFUSED', message: /lock on .* is held on the destination/ })
    await workload.steps(3)
    t.notOk(await isFree(lab, 'a', join(directory, 'flock')))
    await workload.finish()
  })
})
