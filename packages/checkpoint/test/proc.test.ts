import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { eventually } from '@pageferry/testing/eventually'
import { kill, startSubject } from '@pageferry/testing/processes'
import t from 'tap'
import { fdinfoLines, readFdInfo, readFds } from '../src/proc/fdinfo.js'
import { fitsTogether, parseMaps, parseVmFlags, readMaps, readVmFlags } from '../src/proc/maps.js'
import { parseStat, readStat } from '../src/proc/stat.js'
import { parseStatus, readStatus } from '../src/proc/status.js'
import { parseSyscall, readSyscall } from '../src/proc/syscall.js'
import { readTids } from '../src/proc/tasks.js'
import { parseTimers } from '../src/proc/timers.js'
import { SYS } from '../src/remote/syscalls.js'
import { compile, scratchDirectory } from './fixtures/start.js'

t.test('maps: every kind of line', async (t) => {
  const text = [
    '00400000-00401000 r-xp 00000000 fe:01 1234                               /usr/bin/a b',
    '7ffd1000-7ffd3000 rw-s 00002000 00:01 99                                 /dev/zero (deleted)',
    '7f0000000000-7f0000001000 ---p 00000000 00:00 0 ',
    '7f0000001000-7f0000002000 rw-p 00000000 00:00 0                          [anon:a name]',
    '7f0000002000-7f0000003000 r--p 00000000 00:2a 5                          /tmp/new\\012line\\x',
    'ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]',
    '',
  ].join('\n')
  const [program, shared, guard, named, odd, vsyscall] = parseMaps(text)
  t.same(program, {
    start: 0x400,
    nrPages: 1,
    read: true,
    write: false,
    exec: true,
    shared: false,
    offset: 0n,
    device: 'fe:01',
    inode: 1234n,
    name: '/usr/bin/a b',
  })
  t.match(shared, { nrPages: 2, write: true, shared: true, offset: 0x2000n, name: '/dev/zero (deleted)' })
  t.match(guard, { read: false, write: false, exec: false, name: '' })
  t.equal(named.name, '[anon:a name]')
  t.equal(odd.name, '/tmp/new\nline\\x', 'only newlines are escaped')
  t.equal(vsyscall.start, 0xf_ffff_ffff_f600, 'page numbers of the whole address space are exact')
  t.throws(() => parseMaps('nonsense'), /unknown form/)
})

t.test('maps of a process that changes them all the time', async (t) => {
  const { pid } = await startSubject([compile('restless-map')])
  t.teardown(() => kill(pid))
  let torn = 0
  let unfit = 0
  for (let i = 0; i < 2000; i++) {
    if (!fitsTogether(parseMaps(readFileSync(`/proc/${pid}/maps`, 'utf8')))) torn++
    if (!fitsTogether(readMaps(pid))) unfit++
  }
  t.comment(`${torn} of 2000 simple reads were torn`)
  t.equal(unfit, 0)
})

t.test('smaps: flags belong to the area above them', async (t) => {
  const flags = parseVmFlags(
    [
      '00400000-00401000 r-xp 00000000 fe:01 1234 /usr/bin/a',
      'Size:                  4 kB',
      'VmFlags: rd ex mr mw me ',
      '00402000-00403000 rw-p 00000000 00:00 0 [stack]',
      'VmFlags: rd wr mr mw me gd ac',
    ].join('\n'),
  )
  t.same([...flags.keys()], [0x400, 0x402])
  t.same([...(flags.get(0x402) ?? [])], ['rd', 'wr', 'mr', 'mw', 'me', 'gd', 'ac'])
  const own = readVmFlags(process.pid)
  const stack = readMaps(process.pid).find((area) => area.name === '[stack]')
  t.ok(own.get(stack?.start ?? 0)?.has('gd'), 'the stack grows down')
})

t.test('stat: a name with spaces, parentheses and a newline', async (t) => {
  const fields = Array.from({ length: 50 }, (_, i) => String(i + 3))
  fields[0] = 'S'
  const stat = parseStat(`77 (a) b (c\n) ${fields.join(' ')}\n`)
  t.match(stat, {
    comm: 'a) b (c\n',
    state: 'S',
    ppid: 4,
    pgrp: 5,
    session: 6,
    ttyNr: 7,
    flags: 9,
    nrThreads: 20,
    startTime: 22n,
    startCode: 26n,
    endCode: 27n,
    startStack: 28n,
    startData: 45n,
    endData: 46n,
    startBrk: 47n,
    argStart: 48n,
    argEnd: 49n,
    envStart: 50n,
    envEnd: 51n,
    exitCode: 52,
  })
  t.equal(readStat(process.pid).ppid, process.ppid)
})

t.test('status: sets, lists and what is missing', async (t) => {
  const status = parseStatus(
    [
      'Name:\ta:b',
      'Umask:\t0027',
      'TracerPid:\t7',
      'Uid:\t1\t2\t3\t4',
      'Gid:\t5\t6\t7\t8',
      'Groups:\t10 4294967294 ',
      'NSpid:\t100\t20\t1',
      'Threads:\t3',
      'SigPnd:\t0000000000000001',
      'ShdPnd:\t8000000000000000',
      'SigBlk:\tfffffffe7ffbfeff',
      'SigIgn:\t0000000000001000',
      'SigCgt:\t0000000000000002',
      'CapInh:\t0000000000000004',
      'CapPrm:\t000001ffffffffff',
      'NoNewPrivs:\t1',
      'Seccomp:\t2',
      'CoreDumping:\t0',
      'THP_enabled:\t0',
      'x86_Thread_features:\tshstk wrss ',
    ].join('\n'),
  )
  t.match(status, {
    umask: 0o27,
    tracerPid: 7,
    uids: [1, 2, 3, 4],
    gids: [5, 6, 7, 8],
    groups: [10, 4294967294],
    nsPids: [100, 20, 1],
    threads: 3,
    sigPending: 1n,
    sharedPending: 1n << 63n,
    sigBlocked: 0xffff_fffe_7ffb_feffn,
    capInheritable: 4n,
    capPermitted: 0x1ff_ffff_ffffn,
    capAmbient: 0n,
    noNewPrivs: true,
    seccomp: 2,
    coreDumping: false,
    thpEnabled: false,
    x86ThreadFeatures: ['shstk', 'wrss'],
  })
  t.same(parseStatus('Groups:\t\n').groups, [])
  t.match(readStatus(process.pid), { uids: [process.getuid?.()], umask: process.umask() })
})

t.test('syscall: arguments, or none', async (t) => {
  const args = [0x7f00_0000_1000n, 4096n, 8192n, 3n, 0n, 1n]
  const text = `25 ${args.map((arg) => `0x${arg.toString(16)}`).join(' ')} 0x7ffc0 0x7f001\n`
  t.same(parseSyscall(text), { nr: 25, args })
  t.equal(parseSyscall('running\n'), null)
  t.equal(parseSyscall('-1 0x7ffc0 0x7f001\n'), null, 'asleep in a page fault')

  const { pid } = await startSubject(['sh', '-c', 'echo ready; exec sleep 60'])
  try {
    await eventually('it sleeps', () => readSyscall(pid, pid)?.nr === SYS.clock_nanosleep)
    t.pass('it sleeps, and that is said')
  } finally {
    kill(pid)
  }
})

t.test('timers: each way of notifying', async (t) => {
  const block = (id: number, signal: string, notify: string, clock: number): string =>
    `ID: ${id}\nsignal: ${signal}\nnotify: ${notify}\nClockID: ${clock}\n`
  t.same(
    parseTimers(
      block(0, '34/7ffe1122', 'signal/pid.10', 1) +
        block(3, '0/0', 'none/tid.11', -6) +
        block(9, '9/ffffffffffffffff', 'thread/tid.12', 7),
    ),
    [
      { id: 0, signal: 34, value: 0x7ffe1122n, notify: 0, notifyTid: 10, clockId: 1 },
      { id: 3, signal: 0, value: 0n, notify: 5, notifyTid: 11, clockId: -6 },
      { id: 9, signal: 9, value: 0xffff_ffff_ffff_ffffn, notify: 6, notifyTid: 12, clockId: 7 },
    ],
  )
  t.same(parseTimers(''), [])
})

t.test('fdinfo: flags, position and target', async (t) => {
  const directory = scratchDirectory()
  const path = join(directory, 'a\nfile')
  writeFileSync(path, '0123456789')
  const fd = openSync(path, 'r+')
  try {
    readFileSync(fd)
    const info = readFdInfo(process.pid, fd)
    t.match(info, { fd, target: path, position: 10n })
    t.same(fdinfoLines(info, 'lock'), [])
    t.same(fdinfoLines(info, 'pos'), ['10'])
    t.same(fdinfoLines({ text: 'a: 1\nlock:\t1: FLOCK\nb:\nlock:\t2: POSIX\n' }, 'lock'), [
      '1: FLOCK',
      '2: POSIX',
    ])
    t.equal(info.flags & 3, 2, 'O_RDWR')
    t.equal(info.flags & 0o2000000, 0o2000000, 'Node opens everything close-on-exec')
    const all = readFds(process.pid)
    t.ok(all.some((each) => each.fd === fd))
    t.same(
      all.map((each) => each.fd),
      all.map((each) => each.fd).sort((a, b) => a - b),
      'in ascending order',
    )
  } finally {
    closeSync(fd)
  }
  mkdirSync(join(directory, 'gone'))
  t.throws(() => readFdInfo(process.pid, 99_999), { code: 'ENOENT' })
})

t.test('tasks: the leader comes first', async (t) => {
  const tids = readTids(process.pid)
  t.equal(tids[0], process.pid)
  t.ok(tids.length > 1, 'Node has more threads')
  t.equal(new Set(tids).size, tids.length)
})
