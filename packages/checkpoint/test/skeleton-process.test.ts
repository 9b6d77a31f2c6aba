import { closeSync, openSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pageBytes } from '@pageferry/base'
import { fds, processes } from '@pageferry/kernel'
import { eventually } from '@pageferry/testing/eventually'
import { isAlive, kill } from '@pageferry/testing/processes'
import t from 'tap'
import { readFds } from '../src/proc/fdinfo.js'
import { readMaps } from '../src/proc/maps.js'
import { argumentBytes, maxBatchCalls, skeletonScratchPages } from '../src/remote/skeleton-process.js'
import { skeletonOf } from './fixtures/skeleton.js'
import { scratchDirectory } from './fixtures/start.js'

const { O_CLOEXEC } = fds

const targets = (pid: number) =>
  Object.fromEntries(
    readFds(pid).map(({ fd, target, flags }) => [fd, `${target}${(flags & O_CLOEXEC) !== 0 ? ' e' : ''}`]),
  )

t.test("nothing of its own but a scratch area and the kernel's areas", async (t) => {
  const skeleton = await skeletonOf(t)
  const own = readMaps(skeleton.pid).filter(({ name }) => !name.startsWith('[v'))
  t.same(
    own.map(({ start, nrPages, read, write, exec }) => [start, nrPages, `${read}${write}${exec}`]),
    [
      [skeleton.scratchPage, 1, 'truefalsetrue'],
      [skeleton.scratchPage + 1, skeletonScratchPages - 1, 'truetruefalse'],
    ],
  )
  t.same(Object.keys(targets(skeleton.pid)), ['0', '1', '2', '3'])
})

t.test('calls, one by one and in batches', async (t) => {
  const skeleton = await skeletonOf(t)
  t.throws(() => skeleton.call('close', 999), { code: 'EBADF', syscall: 'close', pid: skeleton.pid })
  const at = skeleton.write(Buffer.from('hello'), 100)
  t.equal(Buffer.from(skeleton.read(at, 5)).toString(), 'hello')
  t.throws(() => skeleton.write(new Uint8Array(2), argumentBytes - 1), { code: 'INTERNAL' })
  skeleton.write(new Uint8Array(1), argumentBytes - 1)
  t.same(skeleton.batch([]), [])

  // All six arguments arrive, in their places.
  const page = skeleton.findGap(3, [])
  const address = BigInt(page) * BigInt(pageBytes)
  const fd = openSync('/proc/self/exe', 'r')
  const [theirs] = skeleton.sendFds([fd])
  closeSync(fd)
  t.equal(skeleton.call('mmap', address, pageBytes, 1, 0x10_0002, theirs, pageBytes), address)
  const line = readMaps(skeleton.pid).find(({ start }) => start === page)
  t.match(line, { nrPages: 1, offset: BigInt(pageBytes), read: true, write: false })

  const nr = 2 * maxBatchCalls + 7
  const results = skeleton.batch(
    Array.from({ length: nr }, (_, i) =>
      i % 1000 === 5
        ? { name: 'fcntl', args: [theirs, fds.F_DUPFD_CLOEXEC, 100] }
        : { name: 'close', args: [0x7000_0000 + i] },
    ),
  )
  t.equal(results.length, nr)
  const duplicates = results.filter((result) => result >= 0n)
  t.same(
    duplicates,
    Array.from({ length: Math.ceil((nr - 5) / 1000) }, (_, i) => BigInt(100 + i)),
    'in order',
  )
  t.ok(results.every((result) => result >= 0n || result === -9n))
  t.throws(
    () =>
      skeleton.all([
        { name: 'brk', args: [0] },
        { name: 'munmap', args: [1, 1] },
      ]),
    {
      code: 'EINVAL',
      syscall: 'munmap',
    },
  )
})

t.test('calls that are queued', async (t) => {
  const skeleton = await skeletonOf(t)
  const { pid } = skeleton
  const second = skeleton.createThread(4713)
  const name = (tid: number) => readFileSync(`/proc/${pid}/task/${tid}/comm`, 'utf8')
  const rename = (tid: number, text: string) =>
    skeleton.queue(tid, 'prctl', [15 /* PR_SET_NAME */, skeleton.put(Buffer.from(`${text}\0`)), 0, 0, 0])

  rename(pid, 'one')
  t.not(name(pid), 'one\n', 'it has not run yet')
  rename(second, 'two')
  t.equal(name(pid), 'one\n', 'a call in another thread comes behind')
  t.not(name(second), 'two\n')
  rename(second, 'three')
  rename(pid, 'four')
  t.equal(name(second), 'three\n', 'in order')
  t.ok(skeleton.call('brk', 0) > 0n)
  t.equal(name(pid), 'four\n', 'before any call that is not queued')

  rename(pid, 'five')
  skeleton.write(Buffer.alloc(64))
  t.equal(name(pid), 'five\n', 'before its arguments are overwritten')

  for (let i = 0; i < maxBatchCalls + 10; i++) rename(pid, `name ${i}`)
  skeleton.flush()
  t.equal(name(pid), `name ${maxBatchCalls + 9}\n`, 'also when there are more than fit')
  const long = Buffer.alloc(argumentBytes, 'long\0')
  skeleton.put(Buffer.from('x'))
  skeleton.queue(pid, 'prctl', [15, skeleton.put(long), 0, 0, 0])
  skeleton.flush()
  t.equal(name(pid), 'long\n')
  t.throws(() => skeleton.put(Buffer.alloc(argumentBytes + 1)), { code: 'INTERNAL' })

  skeleton.queue(pid, 'close', [999])
  t.throws(() => skeleton.flush(), { code: 'EBADF', syscall: 'close', pid })
  skeleton.queue(second, 'close', [999], { explain: (errno) => new Error(`explained ${errno}`) })
  t.throws(() => skeleton.call('brk', 0), /explained 9/)
  skeleton.queue(pid, 'fcntl', [0, fds.F_DUPFD_CLOEXEC, 50], { expected: 51n })
  t.throws(() => skeleton.flush(), { code: 'INTERNAL' })
})

t.test('threads with the tids that are asked for', async (t) => {
  const skeleton = await skeletonOf(t)
  const first = skeleton.createThread(5005)
  const second = skeleton.createThread(4711)
  t.same(
    readdirSync(`/proc/${skeleton.pid}/task`)
      .map(Number)
      .sort((a, b) => a - b),
    [skeleton.pid, first, second].sort((a, b) => a - b),
  )
  const inner = (tid: number) =>
    /^NSpid:.*\s(\d+)$/m.exec(readFileSync(`/proc/${skeleton.pid}/task/${tid}/status`, 'utf8'))?.[1]
  t.same([inner(first), inner(second)], ['5005', '4711'])
  t.throws(() => skeleton.createThread(4711), { code: 'REFUSED', message: /thread id 4711 is taken/ })
  t.equal(skeleton.callIn(second, 'brk', 0), skeleton.call('brk', 0), 'each can be used')
  t.ok(skeleton.createThread(4712) > 0, 'also after a failure')
})

t.test('descriptors cross in order, however many', async (t) => {
  const skeleton = await skeletonOf(t)
  const directory = scratchDirectory()
  const ours = Array.from({ length: 600 }, (_, i) => {
    const path = join(directory, String(i))
    writeFileSync(path, '')
    return openSync(path, 'r')
  })
  t.teardown(() => {
    for (const fd of ours) closeSync(fd)
  })
  const theirs = skeleton.sendFds(ours)
  t.equal(new Set(theirs).size, 600)
  t.ok(theirs.every((fd, i) => fds.kcmp(process.pid, skeleton.pid, fds.KCMP_FILE, ours[i], fd) === 0))
  t.ok(readFds(skeleton.pid).every(({ fd, flags }) => fd < 4 || (flags & O_CLOEXEC) !== 0))
  const { hard } = processes.prlimit(skeleton.pid, processes.RLIMIT_NOFILE)
  processes.prlimit(skeleton.pid, processes.RLIMIT_NOFILE, { soft: 610n, hard })
  t.throws(() => skeleton.sendFds(ours.slice(0, 20)), /descriptors/, 'too many for its limit')
})

t.test('it dies with its tracer', async (t) => {
  const skeleton = await skeletonOf(t)
  t.ok(isAlive(skeleton.pid))
  t.equal(readFileSync(`/proc/${skeleton.pid}/status`, 'utf8').includes(`TracerPid:\t${process.pid}`), true)
  kill(skeleton.pid)
  await eventually('it is gone', () => !isAlive(skeleton.pid))
  t.throws(() => skeleton.call('brk', 0))
})
