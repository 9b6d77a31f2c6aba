import { closeSync, openSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { addressOf, pageBytes } from '@pageferry/base'
import { memory } from '@pageferry/kernel'
import { type AreaMap, carriesPages, isPrivateAnon, type PageSet } from '@pageferry/pages'
import { isAlive, kill } from '@pageferry/testing/processes'
import t, { type Test } from 'tap'
import { dumpMemoryMap } from '../src/kinds/memory-map/read.js'
import { readVmFlags } from '../src/proc/maps.js'
import { StoppedProcess } from '../src/remote/stopped-process.js'
import type { SyscallName } from '../src/remote/syscalls.js'
import { availableTrackers, openTracker, scanPresent } from '../src/trackers/open.js'
import { type MemoryScan, type Tracker, type TrackerKind, trackerKinds } from '../src/trackers/tracker.js'
import { scratchDirectory, start } from './fixtures/start.js'

const [mapShared, mapPrivate, mapFixed, mapAnonymous] = [1, 2, 0x10, 0x20]
const [protNone, protRead, protReadWrite] = [0, 1, 3]
const madvDontneed = 4
/** Where the areas of the tests are mapped: nothing else lies there. */
const base = 0x20_0000_000

/** A sleeping process in which a test maps and writes. */
class Puppet {
  readonly pid: number
  readonly #memFd: number

  constructor(pid: number) {
    this.pid = pid
    this.#memFd = openSync(`/proc/${pid}/mem`, 'r+')
  }

  call(name: SyscallName, ...args: (bigint | number)[]): bigint {
    const stopped = StoppedProcess.stop(this.pid, 'one')
    try {
      return stopped.leader.call(name, ...args)
    } finally {
      stopped.resume()
    }
  }

  map(page: number, nr: number, prot = protReadWrite, flags = mapPrivate | mapAnonymous, fd = -1): void {
    this.call('mmap', addressOf(page), nr * pageBytes, prot, flags | mapFixed, fd, 0)
  }

  write(page: number, text: string): void {
    memory.pwrite(this.#memFd, addressOf(page), Buffer.from(text))
  }

  open(path: string): number {
    const stopped = StoppedProcess.stop(this.pid, 'one')
    try {
      stopped.mapScratch()
      stopped.write(stopped.scratch, Buffer.from(`${path}\0`))
      return Number(stopped.leader.call('open', stopped.scratch, 2, 0))
    } finally {
      stopped.resume()
    }
  }

  close(): void {
    closeSync(this.#memFd)
    kill(this.pid)
  }
}

/** Keeps a copy of all that a tracker has reported, as a destination would. */
class Copy {
  readonly pages = new Map<number, Buffer>()
  readonly #pid: number
  readonly #memFd: number
  readonly #tracker: Tracker

  constructor(pid: number, tracker: Tracker) {
    this.#pid = pid
    this.#tracker = tracker
    this.#memFd = openSync(`/proc/${pid}/mem`, 'r')
  }

  map(): AreaMap {
    return dumpMemoryMap(this.#pid, readVmFlags(this.#pid), { tracked: true }).map
  }

  round(): { scan: MemoryScan; map: AreaMap } {
    const map = this.map()
    const scan = this.#tracker.scan(map)
    scan.written.forEachRun((first, nr) => {
      for (let page = first; page < first + nr; page++) {
        const bytes = this.read(page)
        if (bytes === null) continue
        this.pages.set(page, bytes)
        this.#tracker.noteRead(Float64Array.of(page, 1), 1, bytes)
      }
    })
    return { scan, map }
  }

  read(page: number): Buffer | null {
    const bytes = Buffer.alloc(pageBytes)
    try {
      return memory.readRuns(this.#pid, this.#memFd, Float64Array.of(page, 1), 1, bytes) === 1 ? bytes : null
    } catch {
      return null
    }
  }

  close(): void {
    closeSync(this.#memFd)
    this.#tracker.close()
  }
}

/** The numbers of the pages of a set that lie in [base, base + nr), relative to base. */
function pagesOf(set: PageSet, nr = 4096): number[] {
  return Array.from({ length: nr }, (_, i) => i).filter((i) => set.has(base + i))
}

async function puppet(t: Test, kind: TrackerKind) {
  const { pid } = await start('waiter', 'pause')
  const subject = new Puppet(pid)
  t.teardown(() => subject.close())
  const copy = new Copy(pid, openTracker(pid, kind))
  t.teardown(() => copy.close())
  return { subject, copy }
}

const available = availableTrackers()

t.test('which trackers there are', async (t) => {
  t.equal(available.at(-1), 'page-hash')
  t.throws(
    () =>
      openTracker(
        process.pid,
        trackerKinds.find((kind) => !available.includes(kind)) ?? ('none' as TrackerKind),
      ),
    {
      code: 'UNSUPPORTED_HOST',
    },
  )
})

for (const kind of trackerKinds) {
  const skip = available.includes(kind) ? false : `kernel: no ${kind} tracking`

  t.test(`${kind}: anonymous memory`, { skip }, async (t) => {
    const { subject, copy } = await puppet(t, kind)
    subject.map(base, 64)
    for (let i = 0; i < 10; i++) subject.write(base + i, `page ${i}`)
    const first = copy.round()
    t.same(pagesOf(first.scan.written), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    t.same(pagesOf(first.scan.present), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    t.same(pagesOf(copy.round().scan.written), [], 'reported once')
    subject.write(base + 3, 'changed')
    subject.write(base + 20, 'new')
    t.same(pagesOf(copy.round().scan.written), [3, 20])
    t.same(pagesOf(copy.round().scan.written), [])

    subject.call('madvise', addressOf(base + 5), pageBytes, madvDontneed)
    const discarded = copy.round().scan
    t.notOk(discarded.present.has(base + 5), 'a discarded page is not there')
    t.ok(copy.read(base + 5)?.equals(Buffer.alloc(pageBytes)))
    subject.write(base + 5, 'page 5')
    // A tracker that compares contents finds what it has sent before: that is no change to it.
    const sameContent = kind === 'page-hash' ? [] : [5]
    t.same(pagesOf(copy.round().scan.written), sameContent)
    subject.write(base + 5, 'other')
    t.same(pagesOf(copy.round().scan.written), [5])

    subject.call('mprotect', addressOf(base), 2 * pageBytes, protNone)
    t.same(pagesOf(copy.round().scan.written), [], 'protection is no write')
    subject.write(base + 1, 'behind PROT_NONE')
    t.same(pagesOf(copy.round().scan.written), [1])
    t.match(copy.read(base + 1)?.toString(), /^behind PROT_NONE/)
  })

  t.test(`${kind}: areas that come and go`, { skip }, async (t) => {
    const { subject, copy } = await puppet(t, kind)
    subject.map(base, 16)
    for (let i = 0; i < 16; i++) subject.write(base + i, 'old')
    copy.round()
    subject.call('munmap', addressOf(base), 16 * pageBytes)
    subject.map(base, 16)
    subject.write(base + 2, 'new')
    const anew = copy.round().scan
    t.ok(anew.written.has(base + 2), 'the same place, but another mapping')
    t.same(pagesOf(anew.present), [2])
    subject.call('munmap', addressOf(base), 16 * pageBytes)
    const gone = copy.round().scan
    t.same(pagesOf(gone.present), [])
    t.same(pagesOf(gone.written), [])

    subject.map(base, 4)
    subject.write(base + 1, 'moves')
    copy.round()
    subject.call('mremap', addressOf(base), 4 * pageBytes, 4 * pageBytes, 3, addressOf(base + 100))
    const moved = copy.round().scan
    t.same(pagesOf(moved.written), [101])
    t.match(copy.pages.get(base + 101)?.toString(), /^moves/)
    subject.write(base + 101, 'again')
    t.same(pagesOf(copy.round().scan.written), [101], 'and is tracked at its new place')
    t.same(pagesOf(copy.round().scan.written), [])
  })

  t.test(`${kind}: files and shared memory`, { skip }, async (t) => {
    const { subject, copy } = await puppet(t, kind)
    const path = join(scratchDirectory(), 'file')
    writeFileSync(path, Buffer.alloc(8 * pageBytes, 'f'))
    const fd = subject.open(path)
    subject.map(base, 8, protReadWrite, mapPrivate, fd)
    t.match(copy.read(base + 1)?.toString(), /^ffff/)
    t.same(pagesOf(copy.round().scan.present), [], 'what is the file is not the process')
    subject.write(base + 2, 'mine')
    const written = copy.round().scan
    t.same([pagesOf(written.present), pagesOf(written.written)], [[2], [2]])
    t.same(pagesOf(copy.round().scan.written), [])
    subject.write(base + 2, 'mine again')
    t.same(pagesOf(copy.round().scan.written), [2])

    subject.map(base + 100, 8, protReadWrite, mapShared, fd)
    subject.write(base + 100, 'shared file')
    t.notOk(copy.round().scan.present.has(base + 100), 'a shared file has its own way')

    subject.map(base + 200, 16, protReadWrite, mapShared | mapAnonymous)
    subject.write(base + 203, 'shared')
    subject.write(base + 210, 'shared')
    for (let i = 0; i < 2; i++) t.same(pagesOf(copy.round().scan.objectPages), [203, 210], 'in every round')
    // Only a part of the object is left; what is reported are pages of the area.
    subject.call('munmap', addressOf(base + 200), 8 * pageBytes)
    t.same(pagesOf(copy.round().scan.objectPages), [210])
    subject.map(base + 300, 4, protRead, mapShared | mapAnonymous)
    t.same(pagesOf(copy.round().scan.objectPages), [210], 'nothing in it')
  })

  t.test(`${kind}: never misses a write of a fast writer`, { skip, timeout: 60_000 }, async (t) => {
    const path = join(scratchDirectory(), 'file')
    writeFileSync(path, Buffer.alloc(64 * pageBytes, 'f'))
    const { pid } = await start('writer', path)
    t.teardown(() => kill(pid))
    const copy = new Copy(pid, openTracker(pid, kind))
    t.teardown(() => copy.close())
    let clean = 0
    for (let round = 0; round < 8; round++) {
      const { scan } = copy.round()
      clean += scan.present.count - scan.present.clone().intersect(scan.written).count
      await sleep(round)
    }
    const stopped = StoppedProcess.stop(pid, 'all')
    try {
      const { scan, map } = copy.round()
      clean += scan.present.count - scan.present.clone().intersect(scan.written).count
      let compared = 0
      const wrong: string[] = []
      for (const area of map.areas.filter(carriesPages)) {
        for (let page = area.start; page < area.start + area.nrPages; page++) {
          const now = copy.read(page)
          if (now === null || area.kind === 'shared-anon') continue
          const here = scan.present.has(page) || scan.doubtful.has(page)
          const kept = copy.pages.get(page)
          compared++
          // What is there is what was reported last; what is not there is zeros, or the file.
          if (here ? kept?.equals(now) !== true : isPrivateAnon(area) && now.some((byte) => byte !== 0)) {
            wrong.push(
              `${area.kind} page ${page.toString(16)}, ${here ? 'present' : 'absent'}, ${kept === undefined ? 'never reported' : 'stale'}`,
            )
          }
        }
      }
      t.same(wrong, [])
      t.ok(compared > 2048, `${compared} pages compared`)
      t.ok(clean > 100, `${clean} pages were called clean`)
    } finally {
      stopped.resume()
    }
    t.ok(isAlive(pid))
  })
}

t.test('without a tracker: everything that is there counts as written', async (t) => {
  const { pid } = await start('waiter', 'pause')
  const subject = new Puppet(pid)
  t.teardown(() => subject.close())
  subject.map(base, 8)
  subject.write(base + 1, 'a')
  const { map } = dumpMemoryMap(pid, readVmFlags(pid))
  for (let i = 0; i < 2; i++) {
    const scan = scanPresent(pid, map)
    t.same([pagesOf(scan.present), pagesOf(scan.written)], [[1], [1]])
  }
})
