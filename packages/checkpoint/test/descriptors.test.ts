import {
  closeSync,
  fstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import {
  type FdinfoEntry,
  FdType,
  type FileEntry,
  type FileLockEntry,
  type PipeData,
} from '@pageferry/images'
import { fds, processes } from '@pageferry/kernel'
import { eventually } from '@pageferry/testing/eventually'
import { kill, startSubject } from '@pageferry/testing/processes'
import t from 'tap'
import { problemOf } from '../src/kinds/descriptors/check.js'
import { canLockFile, neededLocks } from '../src/kinds/descriptors/file-locks.js'
import type { FdKind, RestoreTree } from '../src/kinds/descriptors/kind.js'
import { DumpedFiles, type FileImages } from '../src/kinds/descriptors/open-files.js'
import { SharedFiles } from '../src/kinds/descriptors/shared.js'
import { noOwner } from '../src/kinds/descriptors/signal-owner.js'
import { dumpTable, restoreDescriptors } from '../src/kinds/descriptors/table.js'
import { FileTable } from '../src/kinds/file-table.js'
import { type FdInfo, fdinfoLines, readFdInfo, readFds } from '../src/proc/fdinfo.js'
import type { SkeletonProcess } from '../src/remote/skeleton-process.js'
import { skeletonOf } from './fixtures/skeleton.js'
import { compile, scratchDirectory, start } from './fixtures/start.js'

const { O_CLOEXEC, FD_CLOEXEC } = fds
const noTids = new Map<number, number>()

const targets = (pid: number) =>
  Object.fromEntries(
    readFds(pid).map(({ fd, target, flags }) => [fd, `${target}${(flags & O_CLOEXEC) !== 0 ? ' e' : ''}`]),
  )

const nrOwnFds = () => readdirSync('/proc/self/fd').length

const imagesOf = (files: FileEntry[], pipes: PipeData[] = [], locks: FileLockEntry[] = []): FileImages => ({
  files: () => files,
  messages: (image) => (image === 'pipes-data' ? pipes : locks) as never[],
})

function dump(pid: number, infos: FdInfo[]) {
  const pidfd = fds.pidfdOpen(pid)
  const table = new FileTable()
  const files = new DumpedFiles(table, infos, 0n)
  const fdinfo = dumpTable({ pid, pidfd, infos }, files)
  closeSync(pidfd)
  const pipes = files.images.find(([image]) => image === 'pipes-data')?.[1] as PipeData[]
  const locks = files.images.find(([image]) => image === 'filelocks')?.[1] as FileLockEntry[]
  return { fdinfo, pipes, locks, images: imagesOf(table.entries(), pipes, locks) }
}

t.test('a table of descriptors is the same in another process', async (t) => {
  const directory = scratchDirectory()
  const { pid } = await start('state', directory)
  t.teardown(() => kill(pid))
  const skeleton = await skeletonOf(t)
  // As a service may run that was not allowed more. The workload has descriptor 1500.
  const { hard } = processes.prlimit(skeleton.pid, processes.RLIMIT_NOFILE)
  processes.prlimit(skeleton.pid, processes.RLIMIT_NOFILE, { soft: 256n, hard })
  const ownFds = nrOwnFds()
  const { fdinfo, pipes, images } = dump(pid, readFds(pid))
  t.equal(
    new Set(fdinfo.map(({ id }) => id)).size,
    fdinfo.length - 3,
    'stdout and stderr are one, 3, 7 and 1500 are one',
  )
  t.equal(pipes[0].data.length, 65536)
  restoreDescriptors(skeleton, fdinfo, images, noTids)
  skeleton.flush()
  t.equal(nrOwnFds(), ownFds, 'nothing stays open here')
  const withoutPipes = (all: Record<string, string>) =>
    Object.fromEntries(Object.entries(all).map(([fd, what]) => [fd, what.replace(/pipe:\[\d+\]/, 'pipe')]))
  t.same(withoutPipes(targets(skeleton.pid)), withoutPipes(targets(pid)))
  const state = (of: number) => readFds(of).map(({ position, flags }) => [position, flags])
  t.same(state(skeleton.pid), state(pid), 'positions and flags')
  const same = (a: number, b: number) => fds.kcmp(skeleton.pid, skeleton.pid, fds.KCMP_FILE, a, b) === 0
  t.same([same(3, 7), same(3, 1500), same(3, 4), same(1, 2)], [true, true, false, true])
})

t.test('what a peer must not send, and what the destination lacks', async (t) => {
  const skeleton = await skeletonOf(t)
  const entry = { id: 77, flags: 0, type: 1, fd: 3 }
  const restore = (files: FileEntry[], of: SkeletonProcess = skeleton, tids = noTids) =>
    restoreDescriptors(of, [entry], imagesOf(files), tids)
  t.throws(() => restore([]), { code: 'PROTOCOL' })
  const directory = mkdtempSync(join(scratchDirectory(), 'd'))
  const path = join(directory, 'file')
  writeFileSync(path, 'x')
  const reg = {
    id: 77,
    flags: 0,
    pos: 0n,
    fown: noOwner,
    name: path,
    mode: fstatSync(openSync(path, 'r')).mode,
  }
  const file = (more: object) => ({ type: 1, id: 77, reg: { ...reg, ...more } })
  t.throws(() => restore([{ type: FdType.PIPE, id: 77, reg }]), { code: 'PROTOCOL' }, 'a pipe that is a file')
  t.throws(() => restore([{ type: FdType.UND, id: 77, reg }]), { code: 'PROTOCOL' }, 'no kind')
  t.throws(() => restore([file({ name: '/no/such/file' })]), { code: 'REFUSED' })
  t.throws(() => restore([file({ name: directory })]), { code: 'REFUSED' })
  t.throws(() => restoreDescriptors(skeleton, [entry, entry], imagesOf([file({})]), noTids), {
    code: 'PROTOCOL',
    message: /3 is there twice/,
  })
  const efd = { id: 77, flags: 0, fown: noOwner, counter: 0xffff_ffff_ffff_ffffn }
  t.throws(() => restore([{ type: FdType.EVENTFD, id: 77, efd }]), { code: 'PROTOCOL' })
  const pipe = { id: 77, pipeId: 5, flags: 0, fown: noOwner }
  const tooFull = { pipeId: 5, bytes: 8192, size: 4096, data: Buffer.alloc(8192) }
  const ownFds = nrOwnFds()
  t.throws(
    () =>
      restoreDescriptors(
        skeleton,
        [entry],
        imagesOf([{ type: FdType.PIPE, id: 77, pipe }], [tooFull]),
        noTids,
      ),
    { code: 'REFUSED', message: /cannot be filled/ },
  )
  t.equal(nrOwnFds(), ownFds, 'nothing stays open here')

  restore([file({})])
  skeleton.flush()
  t.equal(targets(skeleton.pid)[3], path)
  // In a pid namespace of its own a process has another pid for us: 77 and its thread 78 there.
  for (const name of ['stat', 'task/78/stat']) {
    const other = await skeletonOf(t)
    const tids = new Map([
      [77, other.pid],
      [78, other.pid],
    ])
    restore([file({ name: `/proc/77/${name}`, mode: undefined })], other, tids)
    other.flush()
    const here = name.replace('78', `${other.pid}`)
    t.equal(targets(other.pid)[3], `/proc/${other.pid}/${here}`)
  }
})

/** Files of which every one is at another offset, so that each can be told from the others. */
function filesWithOffsets(numbers: number[]): { fdinfo: FdinfoEntry[]; files: FileEntry[] } {
  const fdinfo = numbers.map((fd, i) => ({
    id: i + 1,
    type: FdType.REG,
    fd,
    flags: fd % 3 === 0 ? FD_CLOEXEC : 0,
  }))
  const files = numbers.map((fd, i) => ({
    type: FdType.REG,
    id: i + 1,
    reg: { id: i + 1, flags: 0, pos: BigInt(fd), fown: noOwner, name: '/etc/passwd' },
  }))
  return { fdinfo, files }
}

const dense = (nr: number, from = 0) => Array.from({ length: nr }, (_, i) => from + i)
const hardLimit = Number(processes.prlimit(process.pid, processes.RLIMIT_NOFILE).hard)

/** Numbers in no order, as a peer may send them. */
const tables: Record<string, number[]> = {
  'no descriptor at all': [],
  '62 side by side': dense(62),
  '66 side by side': dense(66),
  '300 side by side': dense(300),
  '900 side by side': dense(900),
  '600 side by side, high up': dense(600, 5000),
  'every second of 1,200': dense(600).map((i) => 2 * i + 1),
  'standard input is closed': [5, 2, 1],
  'the highest that the limit allows, alone': [hardLimit - 1],
  'the highest that the limit allows, below it 700': [hardLimit - 1, ...dense(700).reverse()],
}

for (const [what, numbers] of Object.entries(tables)) {
  t.test(`every descriptor is at its number: ${what}`, async (t) => {
    const skeleton = await skeletonOf(t)
    const { fdinfo, files } = filesWithOffsets(numbers)
    const ownFds = nrOwnFds()
    restoreDescriptors(skeleton, fdinfo, imagesOf(files), noTids)
    skeleton.flush()
    t.equal(nrOwnFds(), ownFds, 'nothing stays open here')
    t.same(
      readFds(skeleton.pid).map(({ fd, position, flags }) => [fd, position, (flags & O_CLOEXEC) !== 0]),
      [...numbers].sort((a, b) => a - b).map((fd) => [fd, BigInt(fd), fd % 3 === 0]),
    )
  })
}

t.test('a number beyond the limits of the destination is refused', async (t) => {
  const skeleton = await skeletonOf(t)
  const { fdinfo, files } = filesWithOffsets([0xffff_fff0])
  t.throws(() => restoreDescriptors(skeleton, fdinfo, imagesOf(files), noTids), { code: 'REFUSED' })
})

t.test('descriptors of one open file description are found by a sorted search', async (t) => {
  const mine = dense(300).map(() => openSync('/etc/passwd', 'r'))
  const twins = mine.filter((_, i) => i % 5 === 0).map((fd) => fds.dup(fd))
  t.teardown(() => {
    for (const fd of [...mine, ...twins]) closeSync(fd)
  })
  const of = (fd: number) => ({ pid: process.pid, info: readFdInfo(process.pid, fd) })
  let calls = 0
  const shared = new SharedFiles<number>((a, b) => {
    calls++
    return fds.kcmp(a.pid, b.pid, fds.KCMP_FILE, a.info.fd, b.info.fd)
  })
  // In no order that the kernel's could resemble.
  for (const fd of [...mine, ...twins].sort((a, b) => ((a * 7919) % 613) - ((b * 7919) % 613)))
    shared.get(of(fd), () => fd)
  for (const [i, twin] of twins.entries()) {
    const never = () => -1
    t.equal(shared.get(of(twin), never), shared.get(of(mine[i * 5]), never))
  }
  t.equal(new Set(mine.map((fd) => shared.get(of(fd), () => -1))).size, mine.length, 'others are apart')
  const lookups = 2 * (mine.length + twins.length) + twins.length
  t.ok(calls <= lookups * 9, `${calls} calls for ${lookups} descriptors of 300 descriptions`)
})

t.test('an eventfd: counter, semaphore, flags, and who shares it', async (t) => {
  const [EFD_SEMAPHORE, EFD_NONBLOCK] = [1, 0o4000]
  const counters: [flags: number, counter: bigint][] = [
    [0, 0n],
    [EFD_NONBLOCK, 5n],
    [EFD_SEMAPHORE, 3n],
    [EFD_SEMAPHORE | EFD_NONBLOCK, 0xffff_ffff_ffff_fffen],
  ]
  const bytes = new BigUint64Array(1)
  const mine = counters.map(([flags, counter]) => {
    const fd = fds.eventfd(flags)
    bytes[0] = counter
    if (counter > 0n) writeSync(fd, new Uint8Array(bytes.buffer))
    return fd
  })
  const twin = fds.dup(mine[1])
  t.teardown(() => {
    for (const fd of [...mine, twin]) closeSync(fd)
  })
  const infos = readFds(process.pid).filter(({ fd }) => [...mine, twin].includes(fd))
  if (fdinfoLines(infos[0], 'eventfd-semaphore').length === 0) {
    t.match(problemOf({ info: infos[0], copy: mine[0] }, infos), /Linux 6.5/)
    return t.pass('eventfd', { skip: 'kernel: fdinfo has no eventfd-semaphore' })
  }
  const skeleton = await skeletonOf(t)
  const { fdinfo, images } = dump(process.pid, infos)
  restoreDescriptors(skeleton, fdinfo, images, noTids)
  skeleton.flush()
  const shown = (pid: number) =>
    readFds(pid)
      .filter(({ fd }) => pid !== process.pid || [...mine, twin].includes(fd))
      .map(({ fd, flags, text }) => [fd, flags, fdinfoLines({ text }, 'eventfd-(?:count|semaphore)')])
  t.same(shown(skeleton.pid), shown(process.pid), 'as the kernel shows it')
  t.equal(fds.kcmp(skeleton.pid, skeleton.pid, fds.KCMP_FILE, mine[1], twin), 0, 'its twin is the same')
  const copies = mine.map((fd) => fds.pidfdGetfd(skeleton.pidfd, fd))
  const read = (fd: number) => {
    readSync(fd, bytes, 0, 8, null)
    return bytes[0]
  }
  t.equal(read(copies[1]), 5n)
  t.throws(() => read(copies[1]), { code: 'EAGAIN' })
  t.same([read(copies[2]), read(copies[2]), read(copies[2])], [1n, 1n, 1n], 'a semaphore counts down')
  t.equal(fdinfoLines(readFdInfo(process.pid, copies[2]), 'eventfd-count')[0], '0')
  for (const fd of copies) closeSync(fd)
})

/** A kind that writes down what it is asked for. Behind it is an eventfd, so that there is something to hand over. */
function recordingKind(name: string, type: FdType, field: 'efd' | 'pipe', log: string[]): FdKind {
  const note =
    (stage: string) => (entry: { id: number }, fd: number, _tree: RestoreTree | SkeletonProcess) => {
      fstatSync(fd)
      log.push(`${stage} ${name} ${entry.id}`)
    }
  return {
    name,
    type,
    field,
    matches: () => false,
    check: () => null,
    dump: () => {
      throw new Error('never')
    },
    create(entry, { own }) {
      const fd = own(fds.eventfd(0))
      note('create')(entry, fd, {} as RestoreTree)
      return fd
    },
    connect(entry, fd, tree) {
      fstatSync(tree.descriptorOf(entry.id === 1 ? 3 : 1))
      note('connect')(entry, fd, tree)
    },
    fill: note('fill'),
    queue: note('queue'),
    afterwards: (entry, fd) => log.push(`afterwards ${name} ${entry.id} at ${fd}`),
  }
}

t.test('each stage is done for all files before the next one begins', async (t) => {
  const skeleton = await skeletonOf(t)
  const log: string[] = []
  const kinds = [
    recordingKind('a', FdType.EVENTFD, 'efd', log),
    { ...recordingKind('b', FdType.PIPE, 'pipe', log), fill: undefined },
  ]
  const efd = (id: number) => ({
    type: FdType.EVENTFD,
    id,
    efd: { id, flags: 0, fown: noOwner, counter: 0n },
  })
  const pipe = { type: FdType.PIPE, id: 2, pipe: { id: 2, pipeId: 1, flags: 0, fown: noOwner } }
  const at = (fd: number, id: number) => ({ id, type: FdType.EVENTFD, fd, flags: 0 })
  const ownFds = nrOwnFds()
  const fdinfo = [at(9, 1), at(4, 2), at(5, 3), at(7, 1)]
  restoreDescriptors(skeleton, fdinfo, imagesOf([efd(1), pipe, efd(3)]), noTids, { kinds })
  t.same(log, [
    ...['create a 1', 'create b 2', 'create a 3'],
    ...['connect a 1', 'connect b 2', 'connect a 3'],
    ...['fill a 1', 'fill a 3'],
    ...['queue a 1', 'queue b 2', 'queue a 3'],
    ...['afterwards a 1 at 7', 'afterwards b 2 at 4', 'afterwards a 3 at 5'],
  ])
  t.equal(nrOwnFds(), ownFds, 'nothing stays open here')
  skeleton.flush()
  t.same(Object.keys(targets(skeleton.pid)), ['4', '5', '7', '9'])
})

t.test('file locks are taken again, each of its kind', async (t) => {
  const { pid } = await startSubject(['env', '-C', scratchDirectory(), compile('odd'), 'locks'])
  t.teardown(() => kill(pid))
  const infos = readFds(pid)
  const { fdinfo, locks, images } = dump(pid, infos)
  const { fd = -1, target = '' } = infos.find((info) => info.target.endsWith('/locked')) ?? {}
  const bySize = [...locks].sort((a, b) => Number(a.len - b.len) || a.flag - b.flag)
  t.match(bySize, [
    { flag: 2, type: 1, fd, start: 0n, len: 0n },
    { flag: 1024, type: 0, fd, start: 100n, len: 0n },
    { flag: 1, type: 1, fd, start: 10n, len: 5n },
  ])
  const [first] = neededLocks(infos.find((info) => info.fd === fd) as FdInfo)
  t.notOk(canLockFile(target, [first]), 'the original has it')
  const refused = await skeletonOf(t)
  t.throws(
    () => {
      restoreDescriptors(refused, fdinfo, images, noTids)
      refused.flush()
    },
    { code: 'REFUSED', message: /lock on .*locked is held on the destination/ },
  )

  kill(pid)
  await eventually('the original lets go', () => canLockFile(target, [first]))
  const skeleton = await skeletonOf(t)
  restoreDescriptors(skeleton, fdinfo, images, noTids)
  skeleton.flush()
  const kindsOf = (of: number) =>
    fdinfoLines(readFdInfo(of, fd), 'lock').map((line) => line.replace(/^\d+: (\w+ +\w+ +\w+) -?\d+/, '$1'))
  t.equal(kindsOf(skeleton.pid).length, 3)
  for (const what of [
    /^FLOCK {2}ADVISORY {2}WRITE .* 0 EOF$/,
    /^POSIX {2}ADVISORY {2}WRITE .* 10 14$/,
    /^OFDLCK ADVISORY {2}READ .* 100 EOF$/,
  ]) {
    t.ok(
      kindsOf(skeleton.pid).some((line) => what.test(line)),
      `${what}: ${kindsOf(skeleton.pid).join('; ')}`,
    )
  }
  for (const lock of [
    { ...locks[0], type: 2 },
    { ...locks[0], flag: 32 },
    { ...locks[0], fd: 999 },
  ]) {
    const other = await skeletonOf(t)
    const wrong = imagesOf(images.files(), [], [lock])
    t.throws(() => restoreDescriptors(other, fdinfo, wrong, noTids), { code: 'PROTOCOL' })
  }
})
