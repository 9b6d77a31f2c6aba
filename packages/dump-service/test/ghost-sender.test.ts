import { spawnSync } from 'node:child_process'
import {
  closeSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readFileSync,
  readSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { FileTable, findGhosts } from '@pageferry/checkpoint'
import { fds } from '@pageferry/kernel'
import { eventually } from '@pageferry/testing/eventually'
import { processDirectory } from '@pageferry/testing/temporary'
import { type Frame, maxPayloadBytes, payloadBytesOf } from '@pageferry/wire'
import t from 'tap'
import { GhostSender } from '../src/rounds/ghost-sender.js'

const directory = processDirectory('ghost-sender')
const { signal } = new AbortController()
const chunk = maxPayloadBytes

/** What the destination would have. */
class Copies {
  readonly frames: Frame[] = []
  readonly contents = new Map<number, Buffer>()

  send(frame: Frame, payload = new Uint8Array(), done = () => {}): void {
    this.frames.push(frame)
    if (payload.length !== payloadBytesOf(frame))
      throw new Error(`${payload.length} bytes behind ${frame.type}`)
    if (frame.type === 'ghost') {
      const resized = Buffer.alloc(frame.size)
      this.contents.get(frame.ghostId)?.copy(resized)
      this.contents.set(frame.ghostId, resized)
    } else if (frame.type === 'ghostData') {
      const { ghostId, offset, bytes, hole } = frame
      const content = this.contents.get(ghostId)
      if (content === undefined || offset + bytes > content.length) throw new Error('behind the end')
      content.fill(0, offset, offset + bytes)
      if (!hole) content.set(payload, offset)
    } else if (frame.type === 'ghostGone') this.contents.delete(frame.ghostId)
    setImmediate(done)
  }

  /** Frames since the last call. */
  taken(): string[] {
    return this.frames.splice(0).map((frame) => {
      if (frame.type !== 'ghostData') return frame.type
      return `${frame.hole ? 'hole' : 'data'} ${frame.offset / chunk} +${frame.bytes}`
    })
  }
}

/** Of this process, which must have no others. */
const ghostsNamed = (path: string) => findGhosts(process.pid).filter((ghost) => ghost.path === path)

t.test('only what has changed is sent, and the copy is right after each pass', async (t) => {
  const path = join(directory, 'file')
  // Reading it to compare would change its times otherwise.
  const fd = fds.open(path, fds.O_RDWR | fds.O_CREAT | fds.O_EXCL | fds.O_NOATIME, 0o600)
  unlinkSync(path)
  const copies = new Copies()
  const sender = new GhostSender(new FileTable(), 8 * chunk)
  t.teardown(() => sender.close())
  const pass = async (): Promise<string[]> => {
    await sender.send(() => ghostsNamed(path), { lanes: copies, signal })
    const content = Buffer.alloc(fstatSync(fd).size)
    for (let at = 0; at < content.length; ) at += readAt(fd, content, at)
    t.ok(copies.contents.get(1)?.equals(content), 'the copy is right')
    return copies.taken()
  }
  const fill = (letter: string, offset: number, bytes: number) =>
    writeSync(fd, Buffer.alloc(bytes, letter), 0, bytes, offset)

  fill('a', 0, 2 * chunk)
  fill('b', 4 * chunk, 4096)
  ftruncateSync(fd, 6 * chunk)
  t.same(await pass(), ['ghost', `data 0 +${chunk}`, `data 1 +${chunk}`, 'data 4 +4096'])
  t.same(await pass(), [], 'nothing has changed')
  fill('c', chunk + 5000, 1)
  t.same((await pass()).slice(1), [`hole 1 +${chunk}`, `data 1 +${chunk}`], 'one chunk')
  fds.punchHole(fd, 0, chunk)
  t.same((await pass()).slice(1), [`hole 0 +${chunk}`], 'a hole')
  fill('\0', 2 * chunk, 4096)
  t.same((await pass()).slice(1), ['data 2 +4096'], 'zeros are no hole')
  ftruncateSync(fd, chunk + 10)
  t.same((await pass()).slice(1), [`hole 1 +10`, 'data 1 +10'], 'shorter')
  ftruncateSync(fd, 3 * chunk)
  await pass()
  utimesSync(`/proc/self/fd/${fd}`, 1, 2)
  t.same(await pass(), ['ghost'], 'its times')

  fill('x', 0, 1)
  await eventually('its times have settled', () => Date.now() - fstatSync(fd).ctimeMs > 1500)
  await pass()
  fill('y', 0, 1)
  t.same((await pass()).includes('data 0 +4096'), true, 'a write behind a pass that took note of the times')

  closeSync(fd)
  // Not what this process has: that is the sender's own descriptor.
  await sender.send(() => [], { lanes: copies, signal })
  t.same(copies.taken(), ['ghostGone'])
  t.equal(ghostsNamed(path).length, 0, 'the sender has let it go')
})

t.test('what nothing can write is not read again', async (t) => {
  const path = join(directory, 'program')
  writeFileSync(path, Buffer.alloc(2 * chunk, 'p'))
  const reader = openSync(path, 'r')
  unlinkSync(path)
  t.teardown(() => closeSync(reader))
  const sender = new GhostSender(new FileTable(), 2 * chunk)
  t.teardown(() => sender.close())
  const pass = async (): Promise<number> => {
    const before = bytesRead()
    await sender.send(() => ghostsNamed(path), { lanes: new Copies(), signal })
    return bytesRead() - before
  }
  t.ok((await pass()) > 2 * chunk)
  await eventually('its times have settled', () => Date.now() - fstatSync(reader).ctimeMs > 1500)
  t.ok((await pass()) > 2 * chunk, 'it might have been written in the moment of the first pass')
  t.ok((await pass()) < chunk)
  const writer = openSync(`/proc/self/fd/${reader}`, 'r+')
  t.ok((await pass()) > 2 * chunk, 'now it can be written')
  closeSync(writer)
  t.ok((await pass()) > 2 * chunk, 'it might have been')
  t.ok((await pass()) < chunk)

  t.same(sender.notMoved, [])
  const script = 'import os,sys; os.setxattr(sys.argv[1], "user.note", b"x")'
  t.equal(spawnSync('python3', ['-c', script, `/proc/${process.pid}/fd/${reader}`]).status, 0)
  t.match(sender.notMoved, [{ what: `the deleted file ${path}`, reason: /attributes \(user\.note\)$/ }])
  t.ok((await pass()) > 2 * chunk, 'changed just now, in whatever way')
})

/** By this process, in bytes (proc_pid_io(5)). */
function bytesRead(): number {
  return Number(/^rchar: (\d+)$/m.exec(readFileSync('/proc/self/io', 'utf8'))?.[1])
}

t.test('more than the limit', async (t) => {
  const path = join(directory, 'large')
  const fd = openSync(path, 'wx+')
  unlinkSync(path)
  t.teardown(() => closeSync(fd))
  writeSync(fd, Buffer.alloc(2 * chunk, 'x'))
  const sender = new GhostSender(new FileTable(), 2 * chunk)
  t.teardown(() => sender.close())
  const copies = new Copies()
  await sender.send(() => ghostsNamed(path), { lanes: copies, signal })
  writeSync(fd, 'more')
  await t.rejects(
    sender.send(() => ghostsNamed(path), { lanes: copies, signal }),
    {
      code: 'WORKLOAD_CHANGED',
      message: /deleted file .*large holds more than --ghost-limit/,
    },
  )
})

function readAt(fd: number, into: Buffer, at: number): number {
  const n = readSync(fd, into, at, into.length - at, at)
  if (n === 0) throw new Error('the file ends early')
  return n
}
