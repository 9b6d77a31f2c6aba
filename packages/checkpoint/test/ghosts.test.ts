// Files without a name: how they are found, and how the destination makes them.

import {
  chmodSync,
  closeSync,
  fstatSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import type { CredsEntry } from '@pageferry/images'
import { fds } from '@pageferry/kernel'
import t, { type Test } from 'tap'
import { dataBytesOf, extentsOf, ghostChunkBytes } from '../src/kinds/ghosts/extents.js'
import { findGhosts, openGhost } from '../src/kinds/ghosts/find.js'
import { GhostFiles, maxGhosts } from '../src/kinds/ghosts/ghost-files.js'
import type { GhostFacts } from '../src/kinds/ghosts/make-ghost.js'
import { foreignSetIdBits } from '../src/kinds/ghosts/set-id.js'
import type { Problem } from '../src/problems.js'
import type { SkeletonProcess } from '../src/remote/skeleton-process.js'
import { skeletonOf } from './fixtures/skeleton.js'
import { scratchDirectory } from './fixtures/start.js'

const { O_RDWR, O_RDONLY, O_WRONLY, O_TMPFILE, O_ACCMODE, O_PATH } = fds
const block = 65_536
const limitBytes = 4 * block
const creds: CredsEntry = {
  ...{ uid: 1000, euid: 1000, suid: 1000, fsuid: 1000, gid: 1001, egid: 1001, sgid: 1001, fsgid: 1001 },
  ...{
    capInh: [],
    capPrm: [],
    capEff: [],
    capBnd: [],
    capAmb: [],
    secbits: 0,
    groups: [1002],
    noNewPrivs: 0,
  },
}
const tell = ({ what, reason }: Problem) => {
  throw new Error(`${what}: ${reason}`)
}

function uniqueFacts(more: Partial<GhostFacts> = {}): GhostFacts {
  return {
    ...{
      ghostId: 1,
      path: join(scratchDirectory(), 'gone'),
      mode: 0o102640,
      uid: 1000,
      gid: 1001,
      size: 3 * block,
    },
    ...{ atimeNs: 1_000_000_001n, mtimeNs: BigInt.asUintN(64, -5n), tmpfileFlags: 0 },
    ...more,
  }
}

/** As the workload's user may make files in it. */
function publicDirectory(): string {
  const directory = scratchDirectory()
  chmodSync(directory, 0o1777)
  return directory
}

const own = (identity: string) => findGhosts(process.pid).find((ghost) => ghost.identity === identity)
const identityOf = (fd: number) => {
  const { dev, ino } = fstatSync(fd, { bigint: true })
  return `${dev}:${ino}`
}

t.test('finds what has lost its name, and only that', async (t) => {
  const directory = scratchDirectory()
  const path = join(directory, 'file')
  const fd = openSync(path, 'wx+')
  const reader = openSync(path, 'r')
  t.equal(own(identityOf(fd)), undefined)
  unlinkSync(path)
  t.match(own(identityOf(fd)), {
    path,
    isDirectory: false,
    isWritten: true,
    tmpfileFlags: 0,
  })
  closeSync(fd)
  t.match(own(identityOf(reader)), { isWritten: false })

  const odd = join(directory, 'called so (deleted)')
  writeFileSync(odd, '')
  const named = openSync(odd, 'r')
  t.equal(own(identityOf(named)), undefined)

  const unnamed = fds.open(directory, O_TMPFILE | O_WRONLY, 0o600)
  t.equal((own(identityOf(unnamed))?.tmpfileFlags ?? 0) & (O_TMPFILE | O_ACCMODE), O_TMPFILE | O_WRONLY)

  mkdirSync(join(directory, 'sub'))
  const sub = openSync(join(directory, 'sub'), 'r')
  rmdirSync(join(directory, 'sub'))
  const removed = own(identityOf(sub))
  t.match(removed, { path: join(directory, 'sub'), isDirectory: true })

  const ghost = own(identityOf(reader))
  if (ghost === undefined) throw new Error('it was found before')
  const opened = openGhost(ghost)
  t.equal(opened !== null && identityOf(opened), ghost.identity)
  closeSync(reader)
  t.equal(openGhost(ghost), null, 'let go')
  for (const each of [named, unnamed, sub, opened as number]) closeSync(each)
})

t.test('holes are not data', async (t) => {
  const fd = openSync(join(scratchDirectory(), 'sparse'), 'wx+')
  t.teardown(() => closeSync(fd))
  writeSync(fd, 'begin', 0)
  writeSync(fd, Buffer.alloc(block, 'x'), 0, block, 4 * block)
  fds.punchHole(fd, 5 * block, block)
  const size = 7 * block
  const extents = [...extentsOf(fd, size)]
  t.match(extents, [{ offset: 0 }, { offset: 4 * block, bytes: block }])
  t.same([...extentsOf(fd, 4 * block + 10)][1], { offset: 4 * block, bytes: 10 }, 'only up to the size')
  t.same([...extentsOf(fd, 0)], [])
  t.equal(dataBytesOf(fd, size, size), block + 4096, 'in whole pages')
  t.ok(dataBytesOf(fd, size, 100) < block, 'not all of it is counted beyond the limit')
})

async function ghostsOf(t: Test): Promise<{ ghosts: GhostFiles; skeleton: SkeletonProcess }> {
  const skeleton = await skeletonOf(t)
  const ghosts = new GhostFiles(skeleton, limitBytes)
  t.teardown(() => ghosts.close())
  return { ghosts, skeleton }
}

t.test('a file without a name is made, filled, and like the original', async (t) => {
  const { ghosts, skeleton } = await ghostsOf(t)
  const directory = publicDirectory()
  const facts = uniqueFacts({ path: join(directory, 'gone') })
  const before = readdirSync(`/proc/${skeleton.pid}/fd`)
  ghosts.note(facts)
  t.same(readdirSync(directory), [])
  t.same(readdirSync(`/proc/${skeleton.pid}/fd`), before, 'the skeleton keeps none')
  t.match(readFileSync(`/proc/${skeleton.pid}/status`, 'utf8'), /^Uid:\t0\t0\t0\t0$/m)
  ghosts.write(1, block, block, Buffer.alloc(block, 'a'))
  ghosts.write(1, 0, 5, Buffer.from('hello'))
  ghosts.write(1, block, block, null)
  ghosts.write(1, block + 7, 3, Buffer.from('end'))
  ghosts.note({ ...facts, size: 2 * block + 1 })
  ghosts.finish(creds, tell)
  const fd = ghosts.open(1, O_RDONLY)
  const { uid, gid, mode, size, nlink, mtimeNs, atimeNs, blocks } = fstatSync(fd, { bigint: true })
  t.same([uid, gid, mode, size, nlink], [1000n, 1001n, 0o102640n, BigInt(2 * block + 1), 0n])
  t.same([atimeNs, mtimeNs], [1_000_000_001n, -5n])
  t.ok(blocks * 512n < BigInt(block), 'the hole takes no room')
  const content = Buffer.alloc(2 * block + 1)
  content.write('hello')
  content.write('end', block + 7)
  t.ok(readFileSync(`/proc/self/fd/${fd}`).equals(content))
  const writer = ghosts.open(1, O_RDWR | fds.O_NOFOLLOW)
  writeSync(writer, 'J', 0)
  t.equal(readFileSync(`/proc/self/fd/${fd}`, 'latin1').slice(0, 5), 'Jello', 'two descriptions of one file')
  t.throws(() => linkSync(`/proc/self/fd/${fd}`, join(directory, 'again')), 'it gets no name again')
  for (const each of [fd, writer]) closeSync(each)
  t.throws(() => ghosts.write(1, 0, 1, Buffer.from('x')), { code: 'PROTOCOL' })
  t.throws(() => ghosts.note(facts), { code: 'PROTOCOL' })
})

t.test('one of O_TMPFILE keeps the flags of its description', async (t) => {
  const { ghosts } = await ghostsOf(t)
  const directory = publicDirectory()
  const tmpfileFlags = O_TMPFILE | O_WRONLY | fds.O_NONBLOCK
  ghosts.note(uniqueFacts({ path: join(directory, '#17'), tmpfileFlags }))
  ghosts.write(1, 0, 2, Buffer.from('ok'))
  ghosts.finish(creds, tell)
  const fd = ghosts.open(1, tmpfileFlags)
  t.equal(fds.fcntl(fd, fds.F_GETFL) & (O_TMPFILE | O_ACCMODE | fds.O_NONBLOCK), tmpfileFlags)
  const other = ghosts.open(1, O_RDONLY)
  t.equal(readFileSync(`/proc/self/fd/${other}`, 'latin1').slice(0, 2), 'ok')
  for (const each of [fd, other]) closeSync(each)
  t.throws(() => ghosts.note(uniqueFacts({ ghostId: 2, tmpfileFlags: O_TMPFILE })), { code: 'PROTOCOL' })
})

t.test('a directory that was removed', async (t) => {
  const { ghosts } = await ghostsOf(t)
  const directory = publicDirectory()
  ghosts.note(uniqueFacts({ path: join(directory, 'sub'), mode: 0o040750, size: 0 }))
  t.same(readdirSync(directory), [])
  t.throws(() => ghosts.write(1, 0, 1, Buffer.from('x')), { code: 'PROTOCOL' })
  t.throws(() => ghosts.note(uniqueFacts()), { code: 'PROTOCOL' }, 'now a file')
  ghosts.finish(creds, tell)
  const fd = ghosts.open(1, O_PATH)
  const { mode, nlink, uid } = fstatSync(fd)
  t.same([mode, nlink, uid], [0o040750, 0, 1000])
  t.match(readlinkSync(`/proc/self/fd/${fd}`), / \(deleted\)$/)
  closeSync(fd)
})

t.test('the place: the nearest directory that is there, with the rights of the owner', async (t) => {
  const { ghosts } = await ghostsOf(t)
  const directory = publicDirectory()
  ghosts.note(uniqueFacts({ path: join(directory, 'removed', 'with', 'it') }))
  const fd = ghosts.open(1, O_RDONLY)
  t.match(readlinkSync(`/proc/self/fd/${fd}`), new RegExp(`^${directory}/#\\d+ \\(deleted\\)$`))
  closeSync(fd)
  const closed = scratchDirectory()
  ghosts.note(uniqueFacts({ ghostId: 2, path: join(closed, 'gone') }))
  const elsewhere = ghosts.open(2, O_RDONLY)
  t.match(readlinkSync(`/proc/self/fd/${elsewhere}`), /^\/var\/tmp\/#\d+ \(deleted\)$/)
  closeSync(elsewhere)
  ghosts.note(uniqueFacts({ ghostId: 3, path: join(closed, 'gone'), uid: 0, gid: 0 }))
  const roots = ghosts.open(3, O_RDONLY)
  t.match(readlinkSync(`/proc/self/fd/${roots}`), new RegExp(`^${closed}/#\\d+ \\(deleted\\)$`))
  closeSync(roots)
})

t.test('set-id bits only for ids that the workload has', async (t) => {
  const { ghosts } = await ghostsOf(t)
  const lost: string[] = []
  const wanted = [
    [{ uid: 1000, gid: 1002 }, 0o106755, 0o106755],
    [{ uid: 0, gid: 1001 }, 0o106755, 0o102755],
    [{ uid: 0, gid: 0 }, 0o106755, 0o100755],
    [{ uid: 0, gid: 0 }, 0o102644, 0o102644],
  ] as const
  for (const [i, [owner, mode]] of wanted.entries()) {
    ghosts.note(uniqueFacts({ ghostId: i + 1, path: '/tmp/gone', mode, ...owner }))
  }
  ghosts.finish(creds, ({ what }) => lost.push(what))
  for (const [i, [, , mode]] of wanted.entries()) {
    const fd = ghosts.open(i + 1, O_RDONLY)
    t.equal(fstatSync(fd).mode, mode, String(i))
    closeSync(fd)
  }
  t.same(lost, Array(2).fill('the deleted file /tmp/gone'))
  t.equal(
    foreignSetIdBits({ mode: 0o106755, uid: 0, gid: 0 }, { ...creds, suid: 0 }),
    0,
    'root may do anything',
  )
  t.equal(foreignSetIdBits({ mode: 0o106755, uid: 0, gid: 0 }, undefined), 0o6000)
})

t.test('no more than the limit', async (t) => {
  const { ghosts } = await ghostsOf(t)
  const path = join(publicDirectory(), 'gone')
  const size = 100 * ghostChunkBytes
  const fill = (ghostId: number, chunk: number, nrBlocks: number) =>
    ghosts.write(ghostId, chunk * ghostChunkBytes, nrBlocks * block, Buffer.alloc(nrBlocks * block, 'x'))
  ghosts.note(uniqueFacts({ path, size }))
  ghosts.note(uniqueFacts({ path, size, ghostId: 2 }))
  for (let i = 0; i < 4; i++) fill(1, i, 1)
  fill(2, 0, 4)
  t.throws(() => ghosts.write(2, 5 * ghostChunkBytes, 1, Buffer.from('x')), {
    code: 'REFUSED',
    message: /more than 262144 bytes, the destination's --ghost-limit/,
  })
  ghosts.write(2, 5 * ghostChunkBytes, ghostChunkBytes, null)
  ghosts.write(2, 0, ghostChunkBytes, null)
  fill(2, 1, 4)
  ghosts.note(uniqueFacts({ path, size: 0, ghostId: 2 }))
  ghosts.note(uniqueFacts({ path, size, ghostId: 2 }))
  fill(2, 0, 1)
  t.throws(
    () => ghosts.write(2, ghostChunkBytes - 1, 2, Buffer.from('xy')),
    { code: 'PROTOCOL' },
    'two chunks',
  )
  t.throws(() => ghosts.finish(creds, tell), { code: 'REFUSED' }, 'one block more than it may be in the end')
  const other = new GhostFiles((await ghostsOf(t)).skeleton, limitBytes)
  t.teardown(() => other.close())
  other.note(uniqueFacts({ path, size }))
  for (let i = 0; i < 4; i++) other.write(1, i * ghostChunkBytes, 5, Buffer.from('small'))
  other.finish(creds, tell)
})

t.test('what a peer must not send', async (t) => {
  const { ghosts } = await ghostsOf(t)
  const directory = publicDirectory()
  const facts = uniqueFacts({ path: join(directory, 'gone') })
  t.throws(() => ghosts.write(1, 0, 1, Buffer.from('x')), { code: 'PROTOCOL' }, 'unknown')
  t.throws(() => ghosts.open(1, O_RDONLY), { code: 'PROTOCOL' })
  t.throws(() => ghosts.drop(1), { code: 'PROTOCOL' })
  t.throws(() => ghosts.note({ ...facts, mode: 0o060600 }), { code: 'PROTOCOL' }, 'a device')
  t.throws(() => ghosts.note({ ...facts, uid: 0xffff_ffff }), { code: 'PROTOCOL' }, 'nobody at all')
  ghosts.note(facts)
  t.throws(() => ghosts.write(1, 3 * block - 1, 2, Buffer.from('xy')), { code: 'PROTOCOL' }, 'behind the end')
  ghosts.drop(1)
  t.throws(() => ghosts.open(1, O_RDONLY), { code: 'PROTOCOL' })
  for (let ghostId = 1; ghostId <= maxGhosts; ghostId++) ghosts.note({ ...facts, ghostId, size: 0 })
  t.throws(() => ghosts.note({ ...facts, ghostId: maxGhosts + 1 }), { code: 'PROTOCOL', message: /too many/ })
})
