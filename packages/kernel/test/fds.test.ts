import { spawn, spawnSync } from 'node:child_process'
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import * as fds from '../src/fds.js'
import { paths } from '../src/paths.js'

const text = (bytes: Uint8Array) => Buffer.from(bytes).toString()
const isOpen = (fd: number) => {
  try {
    fstatSync(fd)
    return true
  } catch {
    return false
  }
}

t.test('a signal does not end the wait for a message', async (t) => {
  let seen = 0
  const note = () => seen++
  process.on('SIGWINCH', note)
  const [a, b] = fds.socketpair(fds.SOCK_SEQPACKET)
  const signaller = spawn('sh', ['-c', `while kill -WINCH ${process.pid}; do sleep 0.02; done`])
  for (let i = 0; i < 5; i++) t.throws(() => fds.recv(b, 10, 0, 100), { code: 'ETIMEDOUT' })
  signaller.kill()
  await new Promise((resolve) => setTimeout(resolve, 50))
  t.ok(seen > 0, 'signals came')
  process.off('SIGWINCH', note)
  closeSync(a)
  closeSync(b)
})

t.test('extended attributes', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pf-fds-'))
  t.teardown(() => rmSync(dir, { recursive: true }))
  const path = join(dir, 'file')
  const fd = openSync(path, 'w+')
  t.same(fds.listXattr(fd), [])
  const script = 'import os,sys; [os.setxattr(sys.argv[1], "user."+n, b"x") for n in ("one", "two")]'
  t.equal(spawnSync('python3', ['-c', script, path]).status, 0)
  t.same(fds.listXattr(fd).sort(), ['user.one', 'user.two'])
  closeSync(fd)
  t.throws(() => fds.listXattr(fd), { code: 'EBADF', syscall: 'flistxattr' })
})

t.test('holes and times of a file', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pf-fds-'))
  t.teardown(() => rmSync(dir, { recursive: true }))
  const fd = openSync(join(dir, 'file'), 'w+')
  writeSync(fd, Buffer.alloc(3 * 65536, 'x'))
  fds.punchHole(fd, 65536, 65536)
  const content = Buffer.alloc(3 * 65536)
  readSync(fd, content, 0, content.length, 0)
  const wanted = Buffer.concat([Buffer.alloc(65536, 'x'), Buffer.alloc(65536), Buffer.alloc(65536, 'x')])
  t.ok(content.equals(wanted))
  t.throws(() => fds.punchHole(fd, 0, 0), { code: 'EINVAL', syscall: 'fallocate' })
  for (const [access, modification] of [
    [1_000_000_001n, 1_700_000_000_123_456_789n],
    [-1n, -1_500_000_000n],
  ] as const) {
    fds.setTimes(fd, access, modification)
    const { atimeNs, mtimeNs } = fstatSync(fd, { bigint: true })
    t.same([atimeNs, mtimeNs], [access, modification])
  }
  closeSync(fd)
})

t.test('passes messages and descriptors over a socket with a long path', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pf-fds-'))
  t.teardown(() => rmSync(dir, { recursive: true }))
  const deep = join(dir, 'd'.repeat(100), 'e'.repeat(100))
  mkdirSync(deep, { recursive: true })
  for (const path of [join(dir, 'sock'), join(deep, 'sock')]) {
    const listener = fds.listenUnix(path, fds.SOCK_SEQPACKET | fds.SOCK_NONBLOCK)
    t.throws(() => fds.acceptUnix(listener), { code: 'EAGAIN' })
    t.throws(() => fds.listenUnix(path, fds.SOCK_SEQPACKET), { code: 'EADDRINUSE', syscall: 'bind' })
    const a = fds.connectUnix(path, fds.SOCK_SEQPACKET)
    const b = fds.acceptUnix(listener)
    const memfd = fds.memfdCreate('passed')
    writeSync(memfd, 'contents')

    fds.send(a, Buffer.from('first'), [memfd, memfd])
    fds.send(a, Buffer.from('second'))
    const first = fds.recv(b, 100, 2, 1000)
    t.equal(text(first.bytes), 'first')
    t.equal(first.fds.length, 2)
    for (const fd of first.fds) {
      t.equal(fds.kcmp(process.pid, process.pid, fds.KCMP_FILE, fd, memfd), 0)
      t.equal(fds.fcntl(fd, fds.F_GETFD), 1, 'close-on-exec')
      closeSync(fd)
    }
    t.same(fds.recv(b, 100, 0, 1000).fds, [])
    t.throws(() => fds.recv(b, 100, 0, 10), { code: 'ETIMEDOUT', syscall: 'recvmsg' })

    const next = fds.dup(memfd)
    closeSync(next)
    fds.send(a, Buffer.from('too long'), [memfd])
    t.throws(() => fds.recv(b, 3, 4, 1000), { code: 'EMSGSIZE' })
    fds.send(a, Buffer.from('too many'), [memfd, memfd])
    t.throws(() => fds.recv(b, 100, 1, 1000), { code: 'EMSGSIZE' })
    t.equal(fds.dup(memfd), next, 'nothing has leaked')
    closeSync(next)

    closeSync(a)
    const end = fds.recv(b, 100, 0, 1000)
    t.equal(end.bytes.length, 0, 'closed')
    t.throws(() => fds.send(b, Buffer.from('x')), { code: 'EPIPE' })
    for (const fd of [b, listener, memfd]) closeSync(fd)
  }
  t.throws(() => fds.connectUnix(join(dir, 'sock'), fds.SOCK_SEQPACKET), { code: 'ECONNREFUSED' })
})

t.test('takes and compares descriptors of another process', async (t) => {
  const [ours, theirs] = fds.socketpair(fds.SOCK_STREAM)
  const child = spawn('sleep', ['60'], { stdio: ['ignore', 'ignore', 'ignore', theirs] })
  const pid = child.pid as number
  t.teardown(() => child.kill('SIGKILL'))
  const pidfd = fds.pidfdOpen(pid)
  const taken = fds.pidfdGetfd(pidfd, 3)
  t.equal(fds.kcmp(process.pid, pid, fds.KCMP_FILE, taken, 3), 0)
  t.equal(fds.kcmp(process.pid, process.pid, fds.KCMP_FILE, taken, theirs), 0)
  const order = fds.kcmp(process.pid, pid, fds.KCMP_FILE, ours, 3)
  t.ok(order === 1 || order === -1)
  t.equal(fds.kcmp(pid, process.pid, fds.KCMP_FILE, 3, ours), -order)
  t.not(fds.kcmp(process.pid, pid, fds.KCMP_VM), 0)
  t.throws(() => fds.pidfdGetfd(pidfd, 999), { code: 'EBADF', syscall: 'pidfd_getfd' })

  fds.pidfdSendSignal(pidfd, 0)
  const exit = new Promise((resolve) => child.once('exit', (_, signal) => resolve(signal)))
  fds.pidfdSendSignal(pidfd, 15)
  t.equal(await exit, 'SIGTERM')
  t.throws(() => fds.pidfdSendSignal(pidfd, 0), { code: 'ESRCH' })
  t.throws(() => fds.pidfdOpen(pid), { code: 'ESRCH', pid })
  for (const fd of [pidfd, taken, ours, theirs]) closeSync(fd)
})

t.test('flags, duplicates, positions, pipes', async (t) => {
  const [read, write] = fds.pipe2(constants.O_NONBLOCK)
  t.ok(fds.fcntl(read, fds.F_GETFL) & constants.O_NONBLOCK)
  fds.fcntl(read, fds.F_SETFL, 0)
  t.notOk(fds.fcntl(read, fds.F_GETFL) & constants.O_NONBLOCK)
  t.ok(fds.fcntl(read, fds.F_SETPIPE_SZ, 8192) >= 8192)
  t.equal(fds.fcntl(read, fds.F_GETPIPE_SZ), 8192)
  const copy = fds.dup(read)
  t.ok(copy >= 64)
  t.throws(() => fds.lseek(read, 0n, fds.SEEK_CUR), { code: 'ESPIPE' })

  const [otherRead, otherWrite] = fds.pipe2(0)
  t.throws(() => fds.tee(read, otherWrite, 100), { code: 'EAGAIN' })
  writeSync(write, 'in the pipe')
  t.equal(fds.tee(read, otherWrite, 100), 11)
  for (const fd of [read, otherRead]) {
    const buffer = Buffer.alloc(20)
    t.equal(buffer.toString('utf8', 0, readSync(fd, buffer)), 'in the pipe', 'tee consumes nothing')
  }
  for (const fd of [read, write, copy, otherRead, otherWrite]) closeSync(fd)
  t.throws(() => fds.fcntl(copy, fds.F_GETFD), { code: 'EBADF' })

  const memfd = fds.memfdCreate('seek')
  ftruncateSync(memfd, 1 << 20)
  writeSync(memfd, 'x', 500_000)
  t.equal(fds.lseek(memfd, 0n, fds.SEEK_DATA), 499_712n)
  t.equal(fds.lseek(memfd, -24n, fds.SEEK_END), 1_048_552n)
  t.throws(() => fds.lseek(memfd, 2n << 20n, fds.SEEK_DATA), { code: 'ENXIO' })
  closeSync(memfd)
})

t.test('opens with raw flags', async (t) => {
  const fd = fds.open('/proc/self', 0o10000000 | constants.O_DIRECTORY) // O_PATH
  t.ok(isOpen(fd))
  t.throws(() => openSync(`/proc/self/fd/${fd}/nothing`, 'r'), { code: 'ENOENT' })
  closeSync(fd)
  t.throws(() => fds.open('/proc/self/nothing', 0), { code: 'ENOENT', syscall: 'open' })
})

t.test('maps a memfd shared', async (t) => {
  const fd = fds.memfdCreate('shared')
  ftruncateSync(fd, 8192)
  const one = fds.mapShared(fd, 8192)
  const two = fds.mapShared(fd, 4096)
  t.same([one.length, two.length], [8192, 4096])
  one[17] = 99
  t.equal(two[17], 99)
  const buffer = Buffer.alloc(1)
  readSync(fd, buffer, 0, 1, 17)
  t.equal(buffer[0], 99)
  closeSync(fd)
  t.equal(two[17], 99, 'the mapping outlives the descriptor')
  t.throws(() => fds.mapShared(fd, 4096), { code: 'EBADF', syscall: 'mmap' })
})

t.test('programs are found', async (t) => {
  t.match(paths.keeper, /build\/keeper$/)
  t.match(paths.skeleton, /build\/skeleton$/)
})
