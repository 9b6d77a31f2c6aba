import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { packageRoot } from '@pageferry/base'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive } from '@pageferry/testing/processes'
import t, { type Test } from 'tap'
import { readExitStatus } from '../src/exit-status.js'
import * as fds from '../src/fds.js'
import { connectKeeper, type KeeperClient, launchKeeper } from '../src/keeper.js'
import { paths } from '../src/paths.js'

const day = 86_400_000_000_000n

function directory(test: Test): string {
  const dir = mkdtempSync(join(tmpdir(), 'pf-keeper-'))
  test.teardown(async () => {
    try {
      const client = connectKeeper(dir)
      client.kill()
      if (client.status().state === 'none') client.quit()
      client.close()
    } catch {
      // It has ended already.
    }
    await ended(dir)
    rmSync(dir, { recursive: true })
  })
  return dir
}

const ended = (dir: string) =>
  eventually(`keeper in ${dir} ends`, () => !existsSync(join(dir, 'keeper.sock')))
const status = (pid: number, field: string) =>
  new RegExp(`^${field}:\\s+(.*)$`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? ''
const openFds = (pid: number) =>
  Object.fromEntries(readdirSync(`/proc/${pid}/fd`).map((fd) => [fd, readlinkSync(`/proc/${pid}/fd/${fd}`)]))
/** True also after it became a zombie that another process has to reap. */

/** Spawns and waits for the skeleton's sign of life. */
function spawned(test: Test, client: KeeperClient, pid: number, cgroupFd?: number) {
  const [socketFd, childEnd] = fds.socketpair(fds.SOCK_SEQPACKET)
  const child = client.spawn({ pid, socketFd: childEnd, cgroupFd })
  closeSync(childEnd)
  test.teardown(() => {
    closeSync(socketFd)
    closeSync(child.pidfd)
  })
  return { ...child, socketFd }
}

t.test('a skeleton with the pid and the clocks that were asked for', async (t) => {
  const dir = directory(t)
  const client = await launchKeeper({
    dir,
    newPidNamespace: true,
    monotonicOffsetNs: 3n * day + 1n,
    boottimeOffsetNs: 5n * day - 1n,
  })
  t.teardown(() => client.close())
  t.same(client.status(), { state: 'none', value: 0 })
  t.throws(() => client.child(), { code: 'ECHILD', syscall: 'keeper(child)' })
  t.throws(() => client.spawn({ pid: 1, socketFd: 2 }), { code: 'EEXIST', syscall: 'keeper(spawn)' })

  const { pid, innerPid, pidfd, socketFd } = spawned(t, client, 4242)
  t.equal(Buffer.from(fds.recv(socketFd, 1, 0, 1000).bytes).toString(), 'U')
  t.equal(innerPid, 4242)
  t.equal(status(pid, 'NSpid').split('\t').at(-1), '4242')
  t.equal(status(pid, 'NSsid').split('\t').at(-1), '4242', 'its own session')
  t.equal(status(pid, 'SigBlk'), '0000000000000000')
  t.equal(status(pid, 'SigIgn'), '0000000000000000')
  t.equal(readFileSync(`/proc/${pid}/cmdline`, 'utf8'), 'pageferry-skeleton\0')
  t.equal(readFileSync(`/proc/${pid}/environ`, 'utf8'), '')
  t.match(openFds(pid), { 0: '/dev/null', 1: '/dev/null', 2: '/dev/null', 3: /^socket:/ })
  t.equal(Object.keys(openFds(pid)).length, 4)
  t.match(readFileSync(`/proc/${pid}/maps`, 'utf8'), /^600000000000-600000001000 r-xp/)

  t.not(readlinkSync(`/proc/${pid}/ns/time`), readlinkSync('/proc/self/ns/time'))
  const inside = execFileSync('nsenter', [
    `--time=/proc/${pid}/ns/time`,
    process.execPath,
    '-p',
    'process.hrtime.bigint() + " " + require("fs").readFileSync("/proc/uptime", "utf8").split(" ")[0]',
  ])
  const [monotonic, uptime] = inside.toString().trim().split(' ')
  const ahead = BigInt(monotonic as string) - process.hrtime.bigint()
  t.ok(ahead > 3n * day - 10_000_000_000n && ahead <= 3n * day + 1n, `monotonic is ${ahead} ns ahead`)
  t.ok(Number(uptime) > 4.9 * 86400, 'boottime, too')

  const successor = connectKeeper(dir)
  const again = successor.child()
  t.match(again, { pid, innerPid })
  closeSync(again.pidfd)
  successor.close()
  t.throws(() => client.spawn({ pid: 0, socketFd: 2 }), { code: 'EALREADY' })
  t.throws(() => client.quit(), { code: 'EBUSY' })
  t.same(client.status(), { state: 'running', value: 0 })
  t.equal(readExitStatus(dir), undefined)
  fds.pidfdSendSignal(pidfd, 15)
  await ended(dir)
  t.same(readExitStatus(dir), { kind: 'signaled', value: 15 })
  t.throws(() => client.status(), { code: /ECONNRESET|EPIPE/ })
  t.throws(() => connectKeeper(dir), { code: 'ENOENT' })
})

t.test('in the pid namespace of the launcher', async (t) => {
  const dir = directory(t)
  const client = await launchKeeper({ dir })
  const { pid, innerPid } = spawned(t, client, 0)
  t.equal(pid, innerPid)
  t.equal(readlinkSync(`/proc/${pid}/ns/time`), readlinkSync('/proc/self/ns/time'))
  client.kill()
  await ended(dir)
  t.same(readExitStatus(dir), { kind: 'signaled', value: 9 })
  client.close()
  client.close()
  t.throws(() => client.status(), { code: 'ENOTCONN' })
})

t.test('holds descriptors across a reconnect', async (t) => {
  const dir = directory(t)
  const first = await launchKeeper({ dir })
  const memfd = fds.memfdCreate('held')
  writeSync(memfd, 'kept')
  first.hold('uffd:1', memfd)
  first.hold('other', 0)
  t.same(first.list(), ['uffd:1', 'other'])
  first.hold('other', memfd)
  first.drop('other')
  t.throws(() => first.drop('other'), { code: 'ENOENT' })
  first.close()

  const second = connectKeeper(dir)
  t.same(second.list(), ['uffd:1'])
  const fetched = second.fetch('uffd:1')
  t.equal(fds.kcmp(process.pid, process.pid, fds.KCMP_FILE, fetched, memfd), 0)
  t.throws(() => second.fetch('other'), { code: 'ENOENT', syscall: 'keeper(fetch)' })
  t.throws(() => second.hold('', memfd), { code: 'EINVAL' })
  t.throws(() => second.hold('n'.repeat(64), memfd), { code: 'ENAMETOOLONG' })
  for (let i = 1; i < 512; i++) second.hold(`${i}`.padStart(63, 'n'), memfd)
  t.throws(() => second.hold('one too many', memfd), { code: 'ENOSPC' })
  t.equal(second.list().length, 512)
  t.equal(second.list()[511], '511'.padStart(63, 'n'))
  second.quit()
  await ended(dir)
  second.close()
  for (const fd of [memfd, fetched]) closeSync(fd)
})

t.test('survives its launcher and keeps nothing of it', async (t) => {
  const dir = directory(t)
  const leaked = fds.memfdCreate('leaked')
  const script = 'trap "" CHLD; "$0" "$@"; echo up; exec sleep 60'
  const launcher = spawn('sh', ['-c', script, paths.keeper, '--dir', dir, '--skeleton', paths.skeleton], {
    detached: true,
    stdio: ['ignore', 'pipe', 'inherit', 'ignore', leaked, leaked],
  })
  closeSync(leaked)
  await once(launcher.stdout as Readable, 'data')
  const client = connectKeeper(dir)
  const { pid } = spawned(t, client, 0)
  const keeper = Number(status(pid, 'PPid'))
  const exit = once(launcher, 'exit')
  process.kill(-(launcher.pid as number), 'SIGKILL')
  await exit
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGPIPE'] as const) process.kill(keeper, signal)

  t.same(client.status(), { state: 'running', value: 0 })
  const open = openFds(keeper)
  t.match(open, { 0: '/dev/null', 1: '/dev/null', 2: '/dev/null' })
  t.notOk(
    Object.values(open).some((target) => target.includes('leaked') || target.startsWith('pipe:')),
    open,
  )
  t.equal(readlinkSync(`/proc/${keeper}/cwd`), '/')
  t.equal(status(keeper, 'SigIgn') === '0000000000000000', false)
  client.close()
  process.kill(pid, 'SIGKILL')
  await ended(dir)
})

/** With a program of one's own in the skeleton's place. */
async function keeperOf(dir: string, program: string, ...options: string[]): Promise<KeeperClient> {
  execFileSync(paths.keeper, ['--dir', dir, '--skeleton', program, ...options])
  return connectKeeper(dir)
}

t.test('exit codes, and programs that cannot be executed', async (t) => {
  const dir = directory(t)
  const client = await keeperOf(dir, '/bin/false')
  spawned(t, client, 0)
  await ended(dir)
  t.same(readExitStatus(dir), { kind: 'exited', value: 1 })
  client.close()

  const other = directory(t)
  const refused = await keeperOf(other, '/etc/passwd')
  t.throws(() => refused.spawn({ pid: 0, socketFd: 2 }), { code: /EACCES|ENOEXEC/ })
  t.same(refused.status(), { state: 'none', value: 0 }, 'may be tried again')
  refused.close()
})

t.test('stays for orphans; KILL reaches them', async (t) => {
  const build = mkdtempSync(join(tmpdir(), 'pf-orphan-'))
  t.teardown(() => rmSync(build, { recursive: true }))
  const program = join(build, 'orphan')
  execFileSync('gcc', ['-o', program, join(packageRoot('kernel'), 'test/orphan.c')])
  for (const options of [[], ['--new-pid-namespace']]) {
    const dir = directory(t)
    const client = await keeperOf(dir, program, ...options)
    spawned(t, client, 0)
    await eventually('the first process exits', () => readExitStatus(dir) !== undefined)
    t.same(readExitStatus(dir), { kind: 'exited', value: 3 })
    t.same(client.status(), { state: 'exited', value: 3 })
    t.throws(() => client.quit(), { code: 'EBUSY' })
    client.kill()
    await ended(dir)
    client.close()
  }
})

t.test('what prevents the start is said', async (t) => {
  const dir = directory(t)
  const client = await launchKeeper({ dir })
  await t.rejects(launchKeeper({ dir }), {
    code: 'KERNEL',
    message: /did not start: bind .*keeper.sock: EADDRINUSE/,
  })
  await t.rejects(launchKeeper({ dir, cgroups: ['/nowhere'] }), {
    message: /open \/nowhere\/cgroup.procs: ENOENT/,
  })
  await t.rejects(launchKeeper({ dir, monotonicOffsetNs: -10_000n * day }), {
    message: /timens_offsets: ERANGE/,
  })
  client.quit()
  client.close()
})

t.test('cgroups: entered, born into, removed', async (t) => {
  const mount = readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .find((line) => line.includes(' - cgroup2 '))
    ?.split(' ')[4]
  if (!mount) return t.pass('no cgroup v2 here')
  const name = `pageferry-test-${process.pid}`
  const [keeperCgroup, cgroup] = [join(mount, `${name}-keeper`), join(mount, `${name}-tree`)]
  for (const path of [keeperCgroup, cgroup]) mkdirSync(path)
  t.teardown(() => eventually('the cgroup is empty', () => tryRemove(keeperCgroup)))
  const dir = directory(t)
  const client = await launchKeeper({ dir, cgroups: [keeperCgroup], removeCgroups: [cgroup] })
  const cgroupFd = openSync(cgroup, 'r')
  const { pid } = spawned(t, client, 0, cgroupFd)
  closeSync(cgroupFd)
  const keeper = Number(status(pid, 'PPid'))
  t.match(readFileSync(`/proc/${pid}/cgroup`, 'utf8'), `0::/${name}-tree\n`)
  t.match(readFileSync(`/proc/${keeper}/cgroup`, 'utf8'), `0::/${name}-keeper\n`)
  client.kill()
  client.close()
  await eventually('the keeper exits', () => !isAlive(keeper))
  t.notOk(existsSync(cgroup))
})

function tryRemove(path: string): boolean {
  try {
    execFileSync('rmdir', [path], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}
