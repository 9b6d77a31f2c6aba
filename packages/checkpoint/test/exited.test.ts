import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync } from 'node:fs'
import { release } from 'node:os'
import { fds } from '@pageferry/kernel'
import t from 'tap'
import { exitOf } from '../src/exited.js'

const [major, minor] = release().split('.').map(Number)
const pidfdTells = major > 6 || (major === 6 && minor >= 15)

t.test('a process that was reaped', { skip: !pidfdTells && 'kernel: no PIDFD_INFO_EXIT' }, async (t) => {
  for (const [command, exit] of [
    ['exit 0', { kind: 'exited', value: 0 }],
    ['exit 213', { kind: 'exited', value: 213 }],
    ['kill -KILL $$', { kind: 'signaled', value: 9 }],
  ] as const) {
    const child = spawn('sh', ['-c', `read x; ${command}`], { stdio: ['pipe', 'ignore', 'ignore'] })
    const pid = child.pid as number
    const pidfd = fds.pidfdOpen(pid)
    t.teardown(() => closeSync(pidfd))
    t.same(exitOf(pid, pidfd), { kind: 'unknown' }, 'it runs')
    child.stdin.end('\n')
    await once(child, 'exit')
    t.same(exitOf(pid, pidfd), exit, command)
  }
})

t.test('a zombie', async (t) => {
  const parent = spawn('sh', ['-c', 'sh -c "read x; exit 5" <&3 & echo $!; exec sleep 60'], {
    stdio: ['ignore', 'pipe', 'ignore', 'pipe'],
  })
  t.teardown(() => parent.kill('SIGKILL'))
  const [line] = await once(parent.stdout as NodeJS.ReadableStream, 'data')
  const pid = Number(String(line))
  const pidfd = fds.pidfdOpen(pid)
  t.teardown(() => closeSync(pidfd))
  ;(parent.stdio[3] as unknown as NodeJS.WritableStream).end('\n')
  while (
    !spawnSync('ps', ['-o', 'stat=', '-p', String(pid)])
      .stdout.toString()
      .startsWith('Z')
  ) {}
  t.same(exitOf(pid, pidfd), { kind: 'exited', value: 5 })
})

t.test('what nothing knows any more', async (t) => {
  const pidfd = fds.pidfdOpen(process.pid)
  t.teardown(() => closeSync(pidfd))
  t.same(exitOf(2 ** 22, pidfd), { kind: 'unknown' })
})
