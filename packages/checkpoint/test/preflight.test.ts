import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { pageBytes } from '@pageferry/base'
import { eventually } from '@pageferry/testing/eventually'
import { adopt, kill, type Subject, startOrphan, startSubject } from '@pageferry/testing/processes'
import t, { type Test } from 'tap'
import { Freezer } from '../src/freezer.js'
import { preflight } from '../src/preflight.js'
import { checkFromInside } from '../src/probe.js'
import { readFds } from '../src/proc/fdinfo.js'
import { type MapsLine, readMaps } from '../src/proc/maps.js'
import { StoppedProcess } from '../src/remote/stopped-process.js'
import { compile, scratchDirectory } from './fixtures/start.js'

const binary = compile('odd')

async function odd(t: Test, kind: string, ...wrapper: string[]): Promise<Subject> {
  const subject = await startSubject([...wrapper, 'env', '-C', scratchDirectory(), binary, kind])
  t.teardown(() => kill(subject.pid))
  return subject
}

function reasons(pid: number): string[] {
  return preflight(pid).problems.map(({ what, reason }) => `${what}: ${reason}`)
}

t.test('an ordinary process can move', async (t) => {
  const { pid } = await odd(t, 'nothing')
  const { workload, problems } = preflight(pid)
  t.same(problems, [])
  t.match(workload, { pid, comm: 'odd', threads: 1 })
  t.ok(workload.residentPages > 50)
  t.match(/^State:\s+(\w)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1], 'S', 'it was not stopped')
})

t.test('descriptors that come and go while it looks are no problem', async (t) => {
  const { pid } = await odd(t, 'restless')
  for (let i = 0; i < 100; i++) t.same(reasons(pid), [], `look ${i}`)
})

/** A process that forked twice has it, too. */
const leftBehind: Record<string, RegExp | null> = {
  'left-nothing': null,
  'left-append': null,
  'left-pipe':
    /^descriptor 3 \(pipe:.*, descriptor 4 \(pipe:.*process \d+ \(odd\), which is not moved with it, has it, too/,
  'left-eventfd': /^descriptor 3 \(anon_inode:\[eventfd\]\): process \d+ \(odd\).* has it, too/,
  'left-position': /^descriptor 3 \(.*\/shared\): process \d+ \(odd\).* has its file position, too/,
  'left-memory': /^memory area [0-9a-f]+000: process \d+ \(odd\).* has this shared memory, too/,
}

for (const [kind, reason] of Object.entries(leftBehind)) {
  t.test(`shared with a process that is no child: ${kind}`, async (t) => {
    const { pid, output } = await odd(t, kind)
    t.equal(output(), 'ready\n')
    const found = reasons(pid)
    if (reason === null) return t.same(found, [])
    t.equal(found.length, 1, found.join('\n'))
    t.match(found[0], reason)
  })
}

t.test('shared with a process that is no child: memory, descriptors and directory', async (t) => {
  const { pid } = await odd(t, 'shares-all')
  const kinds = ['memory (CLONE_VM)', 'descriptors (CLONE_FILES)', 'working directory (CLONE_FS)']
  const found = reasons(pid)
  for (const kind of kinds)
    t.ok(
      found.some((each) => each.includes(`has the same ${kind}`)),
      `${kind}: ${found}`,
    )
})

/** Found from outside; these are found when the process itself is asked. */
const refusedFromInside: Record<string, RegExp> = {
  landlock: /^thread \d+: it is confined by a Landlock domain/,
  'landlock-files': /^thread \d+: it is confined by a Landlock domain/,
  'landlock-user': /^thread \d+: it is confined by a Landlock domain/,
  'landlock-thread': /^thread \d+: it is confined by a Landlock domain/,
  ldt: /^process \d+: it has a local descriptor table/,
  'user-dispatch': /^process \d+: thread \d+ dispatches its own system calls/,
  'no-vdso': /^process \d+: the process has no vdso/,
}

for (const [kind, reason] of Object.entries(refusedFromInside)) {
  t.test(`refused: ${kind}`, async (t) => {
    const { pid, output } = await odd(t, kind)
    if (output().startsWith('unsupported')) return t.pass(kind, { skip: `kernel: ${output().trim()}` })
    t.same(reasons(pid), [])
    const found = (await checkFromInside(pid)).map((problem) => `${problem.what}: ${problem.reason}`)
    t.equal(found.length, 1, found.join('\n'))
    t.match(found[0], reason)
    t.notOk(/^State:\s+[tT]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8')), 'it runs')
  })
}

t.test('nothing is found in an ordinary process of root or somebody else', async (t) => {
  for (const kind of ['nothing', 'user']) {
    const { pid } = await odd(t, kind)
    t.same(reasons(pid), [])
    t.same(await checkFromInside(pid), [], kind)
  }
})

/** Each kind gives exactly one reason, and it is this one. */
const refused: Record<string, RegExp> = {
  seccomp: /seccomp filter/,
  child: /^child processes \d+: only single processes/,
  'own-files': /descriptors of its own/,
  'own-fs': /working directory of its own/,
  memfd: /^descriptor 3 \(\/memfd:x.*of the kind memfd/,
  'memfd-mapping': /memfd mappings/,
  sysv: /System V shared memory/,
  'shared-twice': /mapped twice/,
  'shared-shrunk': /only a part of this shared memory is mapped/,
  aio: /asynchronous I\/O context/,
  io_uring: /^descriptor 3 \(anon_inode:\[io_uring\]\): descriptors of the kind io_uring/,
  mseal: /sealed/,
  droppable: /droppable/,
  socket: /^descriptor 3 \(socket:.*of the kind socket \(AF_\w+, SOCK_\w+\) are not moved yet/,
  'unix-socket': /^descriptor 3 .*, descriptor 4 .*of the kind socket \(AF_UNIX, SOCK_SEQPACKET\)/,
  netlink: /of the kind socket \(AF_NETLINK, SOCK_RAW\)/,
  'message-queue': /a POSIX message queue/,
  'secret-memory': /^memory area .*secret memory/,
  'secret-descriptor': /^descriptor 3 .*secret memory/,
  'hung-up': /a terminal that has hung up/,
  'path-symlink': /O_PATH/,
  epoll: /^descriptor 3 \(anon_inode:\[eventpoll\]\): descriptors of the kind eventpoll/,
  'half-pipe': /only one end of the pipe/,
  fifo: /special file/,
  'path-only': /O_PATH/,
  lease: /a lease/,
  'locked-pipe': /a lock on a file of the kind pipe/,
  'signal-owner': /gets signals from it/,
  'signal-group': /gets signals from it/,
  async: /gets signals from it/,
  dnotify: /gets signals from it/,
  'odd-name': /not valid UTF-8/,
  'deleted-link': /the name that it was opened by is gone, but it has others/,
  device: /terminal or device/,
  deadline: /^process \d+: its policy is SCHED_DEADLINE/,
  'no-room': /^process \d+: its limit of \d+ bytes of address space/,
  'time-children': /^time namespace: its children/,
  'pid-children': /^pid namespace: its children/,
  'many-timers': /POSIX timer \d+: its id is too high/,
  'alarm-timerfd': /^descriptor 3 \(anon_inode:\[timerfd\]\): a timerfd with the clock 8/,
  'clock-of-other': /^POSIX timer 0: its clock is the processor time of another process/,
  'clock-of-ended': /^POSIX timer 0: its clock is that of a thread that has ended/,
  'clock-of-thread': /^POSIX timer 0: the kernel does not show of which thread/,
}

for (const [kind, reason] of Object.entries(refused)) {
  t.test(`refused: ${kind}`, async (t) => {
    const { pid, output } = await odd(t, kind)
    if (output().startsWith('unsupported')) return t.pass(kind, { skip: `kernel: ${output().trim()}` })
    const found = reasons(pid)
    t.equal(found.length, 1, found.join('\n'))
    t.match(found[0], reason)
  })
}

/** These break more than one rule. */
const refusedTwice: Record<string, RegExp[]> = {
  userfaultfd: [/^memory area.*uses userfaultfd itself/, /^descriptor 3 \(anon_inode:\[userfaultfd\]\)/],
  'device-mapping': [/device mappings/],
  hugetlb: [/hugetlbfs/],
  tty: [/controlling terminal/, /terminal or device/],
  'packet-pipe': [/packet mode/],
}

for (const [kind, all] of Object.entries(refusedTwice)) {
  t.test(`refused: ${kind}`, async (t) => {
    const { pid, output } = await odd(t, kind)
    if (output().startsWith('unsupported')) return t.pass(kind, { skip: `kernel: ${output().trim()}` })
    const found = reasons(pid)
    for (const reason of all)
      t.ok(
        found.some((each) => reason.test(each)),
        `${reason}: ${found.join('\n')}`,
      )
  })
}

for (const kind of [
  'deleted-mapping',
  'deleted-file',
  'replaced-file',
  'removed-directory',
  'flock',
  'posix-lock',
]) {
  t.test(`not refused: ${kind}`, async (t) => t.same(reasons((await odd(t, kind)).pid), []))
}

t.test('deleted files beyond the limit, and those that another process has, too', async (t) => {
  const { pid } = await odd(t, 'deleted-file')
  const [path] = readFds(pid).flatMap(({ target }) =>
    target.endsWith('/gone (deleted)') ? [target.slice(0, -10)] : [],
  )
  const link = `/proc/${pid}/fd/${readFds(pid).find(({ target }) => target.startsWith(path))?.fd}`
  writeFileSync(link, 'seventeen bytes..')
  truncateSync(link, 1 << 30)
  t.same(preflight(pid, { ghostBytes: 1 << 20 }).problems, [], 'a hole does not count')
  t.match(preflight(pid, { ghostBytes: 16 }).problems, [
    { what: `the deleted file ${path}`, reason: /^it holds \d+ bytes, the limit is 16: --ghost-limit$/ },
  ])
  for (const how of ['<', '<>']) {
    const other = startOrphan('sh', '-c', `echo ready; exec sleep 60 7${how}${link}`)
    t.teardown(() => kill(other.pid))
    await eventually('the other has it', () => readFds(other.pid).some(({ fd }) => fd === 7))
    t.match(reasons(pid), [new RegExp(`^the deleted file ${path}: process ${other.pid} has it, too`)])
    kill(other.pid)
    await eventually('the other is gone', () => !existsSync(`/proc/${other.pid}/fd/7`))
  }
  t.same(reasons(pid), [])
})

t.test('a deleted file that several processes only read, as after a package upgrade', async (t) => {
  const { pid } = await odd(t, 'deleted-mapping')
  const { start, nrPages } = readMaps(pid).find(({ name }) => name.endsWith('/mapped (deleted)')) as MapsLine
  const range = [start, start + nrPages].map((page) => (page * pageBytes).toString(16)).join('-')
  const other = startOrphan('sh', '-c', `exec sleep 60 7</proc/${pid}/map_files/${range}`)
  t.teardown(() => kill(other.pid))
  await eventually('the other has it', () => readFds(other.pid).some(({ fd }) => fd === 7))
  t.same(reasons(pid), [])
})

t.test('all problems are named, not only the first', async (t) => {
  const { pid } = await odd(t, 'socket', 'unshare', '-u')
  const found = reasons(pid)
  t.equal(found.length, 2)
  t.ok(found.some((each) => each.startsWith('uts namespace')))
})

t.test('namespaces of its own; but a time namespace is rebuilt', async (t) => {
  for (const [flag, name] of [
    ['-i', 'ipc'],
    ['-n', 'net'],
    ['-u', 'uts'],
    ['-C', 'cgroup'],
    ['-m', 'mnt'],
  ]) {
    const { pid } = await odd(t, 'nothing', 'unshare', flag)
    t.match(reasons(pid), [new RegExp(`^${name} namespace`)])
  }
})

t.test('stopped by job control, which is no problem; traced, not a session leader', async (t) => {
  const { pid } = await odd(t, 'nothing')
  process.kill(pid, 'SIGSTOP')
  await eventually('it is stopped', () => /^State:\s+T/m.test(readFileSync(`/proc/${pid}/status`, 'utf8')))
  t.same(reasons(pid), [])
  process.kill(pid, 'SIGCONT')
  const stopped = StoppedProcess.stop(pid, 'all')
  t.match(reasons(pid)[0], /traced by process/)
  stopped.resume()
  t.same(reasons(pid), [])

  const member = startOrphan(binary, 'nothing')
  t.teardown(() => kill(member.pid))
  await eventually('it runs', () => readFileSync(member.output, 'utf8') === 'ready\n')
  t.match(reasons(member.pid), [/session/])
})

t.test('frozen by others', async (t) => {
  const { pid } = await odd(t, 'nothing')
  const freezer = Freezer.forProcess(pid, `test-${process.pid}-frozen`)
  t.teardown(() => freezer.dissolve())
  freezer.create()
  freezer.add(pid)
  t.same(reasons(pid), [])
  freezer.freeze()
  t.match(reasons(pid), [new RegExp(`^process ${pid}: it is frozen in ${freezer.record.path} `)])
  freezer.thaw()
  t.same(reasons(pid), [])
})

t.test('no process, a zombie, a kernel thread', async (t) => {
  t.throws(() => preflight(0x3f_ffff), { code: 'NO_SUCH_PROCESS' })
  const shell = startOrphan('sh', '-c', 'sleep 0 & exec sleep 60')
  t.teardown(() => kill(shell.pid))
  const child = (): number =>
    Number(readFileSync(`/proc/${shell.pid}/task/${shell.pid}/children`, 'utf8').split(' ')[0])
  await eventually(
    'there is a zombie',
    () => child() > 0 && /^State:\s+Z/m.test(readFileSync(`/proc/${child()}/status`, 'utf8')),
  )
  adopt(child())
  t.match(reasons(child()), [/has exited/])
  const kthread = 2
  if (
    !existsSync(`/proc/${kthread}`) ||
    !/^Kthread:\s+1/m.test(readFileSync(`/proc/${kthread}/status`, 'utf8'))
  ) {
    return t.pass('a kernel thread', { skip: 'kernel: pid 2 is none here' })
  }
  t.match(reasons(kthread), [/kernel thread/])
})

t.test('only root', async (t) => {
  const loader = new URL('../../../scripts/typescript-loader.mjs', import.meta.url)
  const script = `
    process.setuid(65534)
    const { preflight } = await import(${JSON.stringify(new URL('../src/preflight.ts', import.meta.url).href)})
    try { preflight(1) } catch (error) { console.log(error.code) }`
  const { stdout, stderr } = spawnSync(
    process.execPath,
    ['--import', loader.href, '--input-type=module', '-e', script],
    {
      encoding: 'utf8',
    },
  )
  t.equal(stdout, 'NOT_PERMITTED\n', stderr)
})
