import { existsSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { totalmem } from 'node:os'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { addressOf, pageBytes } from '@pageferry/base'
import { decodeImage, encodeImage, VMA_STATUS } from '@pageferry/images'
import { launchKeeper, memory, pagemap, uffd } from '@pageferry/kernel'
import { type Area, AreaMap, maxAreas, PageSet } from '@pageferry/pages'
import { adopt, kill } from '@pageferry/testing/processes'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { mmOfRound } from '../src/kinds/address-space.js'
import { FileTable } from '../src/kinds/file-table.js'
import { guardsFromVmas, guardsToVmas } from '../src/kinds/guard-regions.js'
import { dumpMemoryMap } from '../src/kinds/memory-map/read.js'
import { areasFromVmas, areasToVmas } from '../src/kinds/memory-map/vmas.js'
import { readMaps, readVmFlags } from '../src/proc/maps.js'
import { Restorer } from '../src/restore.js'
import { scratchDirectory, start } from './fixtures/start.js'

const [protRead, protReadWrite] = [1, 3]
const [mapShared, mapPrivate, mapAnonymous, mapLocked, mapGrowsDown] = [1, 2, 0x20, 0x2000, 0x100]
const base = 0x20_0000_000

function anon(start: number, nrPages: number, more: Partial<Area> = {}): Area {
  return {
    start: base + start,
    nrPages,
    kind: 'anon',
    prot: protReadWrite,
    flags: mapPrivate | mapAnonymous,
    madv: 0,
    growsDown: false,
    lazyEligible: true,
    offset: 0n,
    path: undefined,
    fileFlags: undefined,
    backingId: undefined,
    name: undefined,
    ...more,
  }
}

/**
 * Identities are numbers of the file table after the way over the wire, one for each way that a file is opened; what
 * counts is which are equal.
 */
function comparable(map: AreaMap): unknown[] {
  const known = new Map<string, number>()
  return map.areas.map(({ backingId, ...area }) => {
    const key = `${area.fileFlags} ${backingId}`
    if (!known.has(key)) known.set(key, known.size)
    return { ...area, backing: backingId === undefined ? undefined : known.get(key) }
  })
}

const area = fc
  .record({
    gap: fc.integer({ min: 0, max: 3 }),
    nrPages: fc.integer({ min: 1, max: 1 << 20 }),
    kind: fc.constantFrom('anon', 'heap', 'stack', 'file-private', 'file-shared', 'shared-anon'),
    prot: fc.integer({ min: 0, max: 7 }),
    locked: fc.constantFrom('no', 'full', 'on fault'),
    madv: fc.constantFrom(0, 1 << 10, 1 << 14, (1 << 16) | (1 << 18)),
    offset: fc.integer({ min: 0, max: 1 << 30 }),
    file: fc.integer({ min: 0, max: 3 }),
    writable: fc.boolean(),
  })
  .map(({ gap, kind, locked, file, offset, writable, ...rest }) => {
    const shared = kind === 'file-shared' || kind === 'shared-anon'
    const isFile = kind.startsWith('file')
    const growsDown = kind === 'stack'
    const flags =
      (shared ? mapShared : mapPrivate) |
      (isFile ? 0 : mapAnonymous) |
      (locked === 'no' ? 0 : mapLocked) |
      (growsDown ? mapGrowsDown : 0)
    return {
      gap,
      area: anon(0, rest.nrPages, {
        ...rest,
        kind: kind as Area['kind'],
        flags,
        ...(locked === 'on fault' && { lockOnFault: true }),
        growsDown,
        lazyEligible:
          ['anon', 'heap', 'stack'].includes(kind) && locked === 'no' && (rest.madv & (1 << 18)) === 0,
        path: isFile ? `/lib/file ${file}\n` : undefined,
        // The first of the table has this id, too.
        ghost: isFile && file === 3 ? '1' : undefined,
        fileFlags: isFile ? (kind === 'file-shared' && writable ? 2 : 0) : undefined,
        backingId: isFile || kind === 'shared-anon' ? `fe:0${isFile ? file : file + 4}` : undefined,
        offset: isFile || kind === 'shared-anon' ? BigInt(offset) * 4096n : 0n,
      }),
    }
  })

t.test('areas survive the way over the wire', async (t) => {
  fc.assert(
    fc.property(fc.array(area, { maxLength: 30 }), (list) => {
      let at = base
      const areas = list.map(({ gap, area }) => {
        const placed = { ...area, start: at + gap }
        at = placed.start + placed.nrPages
        return placed
      })
      const map = new AreaMap(areas)
      const files = new FileTable()
      const mm = decodeImage('mm', encodeImage('mm', mmOfRound(map, files)))
      const remaps = decodeImage('remap-fpath', encodeImage('remap-fpath', files.remaps()))
      const ghostIds = new Map(remaps.map(({ origId, remapId }) => [origId, remapId]))
      const back = areasFromVmas(
        mm.vmas,
        decodeImage('files', encodeImage('files', files.entries())),
        ghostIds,
      )
      return isDeepStrictEqual(comparable(back), comparable(map))
    }),
    { numRuns: 150 },
  )
  t.pass('for all of them')
})

t.test('names of anonymous memory travel with it', async (t) => {
  const map = new AreaMap([anon(0, 1, { name: 'a heap' }), anon(1, 1), anon(2, 1, { name: 'x' })])
  const image = encodeImage('mm', mmOfRound(map, new FileTable()))
  const names = areasFromVmas(decodeImage('mm', image).vmas, []).areas.map(({ name }) => name)
  t.same(names, ['a heap', undefined, 'x'])
})

t.test('ids of files stay the same over rounds', async (t) => {
  const files = new FileTable()
  const library = {
    kind: 'file-private',
    flags: mapPrivate,
    path: '/lib/a',
    fileFlags: 0,
    backingId: 'fe:00:1',
  } as const
  const [first] = areasToVmas(new AreaMap([anon(0, 1, library)]), files)
  const [again] = areasToVmas(new AreaMap([anon(5, 1, { ...library, path: '/lib/renamed' })]), files)
  t.equal(first.shmid, again.shmid)
  t.equal(files.entries()[0].reg?.name, '/lib/renamed')
  const [other] = areasToVmas(new AreaMap([anon(0, 1, { ...library, backingId: 'fe:00:2' })]), files)
  t.not(other.shmid, first.shmid, 'the same path, but another file')
})

t.test('guard regions survive the way over the wire, inside the areas only', async (t) => {
  const map = new AreaMap([anon(0, 4), anon(4, 4, { prot: 1 }), anon(20, 2)])
  const guards = PageSet.of([base + 1, 1], [base + 3, 3], [base + 21, 1])
  const mm = mmOfRound(map, new FileTable())
  mm.vmas.push(...guardsToVmas(guards))
  const { vmas } = decodeImage('mm', encodeImage('mm', mm))
  t.ok(guardsFromVmas(vmas, map).equals(guards), 'also one that reaches over two areas')
  t.ok(comparable(areasFromVmas(vmas, [])).length === 3, 'they are no areas')
  for (const [first, nr] of [
    [base + 7, 2],
    [base + 10, 1],
    [base, 2 ** 35],
  ]) {
    const [vma] = guardsToVmas(PageSet.of([base, 1]))
    const outside = { ...vma, start: BigInt(first) << 12n, end: BigInt(first + nr) << 12n }
    t.throws(() => guardsFromVmas([outside], map), { code: 'PROTOCOL' })
  }
})

t.test('what a peer must not send', async (t) => {
  const [vma] = areasToVmas(new AreaMap([anon(0, 1)]), new FileTable())
  t.throws(() => areasFromVmas([{ ...vma, status: 0 }], []), { code: 'PROTOCOL' })
  t.throws(() => areasFromVmas(Array(maxAreas + 1).fill(vma), []), { code: 'REFUSED', message: /areas/ })
  const fileStatus = VMA_STATUS.REGULAR | VMA_STATUS.FILE_PRIVATE
  t.throws(() => areasFromVmas([{ ...vma, status: fileStatus, shmid: 9n }], []), { code: 'PROTOCOL' })
  t.throws(() => areasFromVmas([vma, vma], []), RangeError)
})

t.test('the map of a process', async (t) => {
  const directory = scratchDirectory()
  const { pid } = await start('state', directory)
  t.teardown(() => kill(pid))
  const { map, problems } = dumpMemoryMap(pid, readVmFlags(pid))
  t.same(problems, [])
  const lines = readMaps(pid).filter((line) => line.name !== '[vsyscall]')
  t.same(
    map.areas.map(({ start, nrPages }) => [start, nrPages]),
    lines.map(({ start, nrPages }) => [start, nrPages]),
  )
  const kinds = new Set(map.areas.map(({ kind }) => kind))
  for (const kind of [
    'anon',
    'heap',
    'stack',
    'file-private',
    'file-shared',
    'shared-anon',
    'vdso',
    'vvar',
  ] as const) {
    t.ok(kinds.has(kind), kind)
  }
  t.equal(map.areas.find(({ kind }) => kind === 'file-shared')?.fileFlags, 2, 'it may be made writable')
  const locked = map.areas.filter(({ flags }) => (flags & mapLocked) !== 0)
  t.ok(locked.length > 0 && locked.every(({ lazyEligible }) => !lazyEligible), 'locked memory is never lazy')
  const own = map.areas.find(({ kind }) => kind === 'anon')
  const without = dumpMemoryMap(pid, readVmFlags(pid), {
    excluded: { page: own?.start ?? 0, nrPages: own?.nrPages ?? 0 },
  }).map
  t.equal(without.areas.length, map.areas.length - 1, 'our own scratch area is left out')
})

async function skeleton(t: Test) {
  const dir = scratchDirectory()
  const keeper = await launchKeeper({ dir })
  t.teardown(() => {
    try {
      keeper.kill()
    } catch {
      // It went with its child.
    }
    keeper.close()
  })
  const restorer = Restorer.create(keeper, 0)
  adopt(restorer.pid)
  t.teardown(() => kill(restorer.pid))
  const install = (page: number, text: string): void => {
    const bytes = Buffer.alloc(pageBytes, text)
    const { state } = uffd.installRuns(
      restorer.uffd,
      restorer.skeleton.memFd,
      Float64Array.of(base + page, 1),
      1,
      bytes,
      'overwrite',
      false,
    )
    if (state !== 'done') throw new Error(`UFFDIO_COPY: ${state}`)
  }
  const pagemapFd = openSync(`/proc/${restorer.pid}/pagemap`, 'r')
  return {
    restorer,
    install,
    /** First letter of each page: "." is one that is not there, "!" one that nothing is mapped to. */
    content(first: number, nr: number): string {
      const maps = readMaps(restorer.pid)
      return Array.from({ length: nr }, (_, i) => {
        const page = base + first + i
        if (!maps.some((line) => line.start <= page && page < line.start + line.nrPages)) return '!'
        const entry = new BigUint64Array(1)
        pagemap.read(pagemapFd, page, 1, entry)
        if ((entry[0] & pagemap.PM_PRESENT) === 0n) return '.'
        const bytes = Buffer.alloc(1)
        memory.pread(restorer.skeleton.memFd, addressOf(page), bytes)
        return bytes.toString()
      }).join('')
    },
    prot(page: number): string {
      const line = readMaps(restorer.pid).find(
        ({ start, nrPages }) => start <= base + page && base + page < start + nrPages,
      )
      return line === undefined
        ? 'none'
        : `${line.read ? 'r' : '-'}${line.write ? 'w' : '-'}${line.shared ? 's' : 'p'}`
    },
  }
}

t.test('an area larger than the memory of the machine, as the kernel merges them', async (t) => {
  const { restorer, install, content, prot } = await skeleton(t)
  const nrPages = Math.ceil((totalmem() / pageBytes) * 1.7)
  restorer.map.apply(new AreaMap([anon(0, nrPages)]))
  const ours = readMaps(restorer.pid).filter(({ start }) => start === base)
  t.match(ours, [{ nrPages }], 'one area')
  t.equal(prot(nrPages - 1), 'rwp')
  install(nrPages - 1, 'z')
  t.equal(content(nrPages - 1, 2), 'z!')
  t.ok(restorer.map.registered.equals(PageSet.of([base, nrPages])))
})

t.test('a skeleton follows the map, and keeps what stays', async (t) => {
  const { restorer, install, content, prot } = await skeleton(t)
  const { map } = restorer
  map.apply(
    new AreaMap([
      anon(0, 8),
      anon(20, 4),
      anon(40, 4, { flags: mapPrivate | mapAnonymous | mapLocked, lazyEligible: false }),
    ]),
  )
  t.equal(content(0, 9), '........!')
  t.ok(
    map.registered.equals(PageSet.of([base, 8], [base + 20, 4])),
    'exactly the eligible areas are registered',
  )
  for (let i = 0; i < 8; i++) install(i, String(i))
  install(21, 'x')
  memory.writeRuns(restorer.skeleton.memFd, Float64Array.of(base + 40, 1), 1, Buffer.alloc(pageBytes, 'L'))

  // Split by a protection, shortened, grown, unmapped, and one of another kind in the old place.
  const file = join(scratchDirectory(), 'file')
  writeFileSync(file, 'f'.repeat(pageBytes * 2))
  map.apply(
    new AreaMap([
      anon(0, 2),
      anon(2, 2, { prot: protRead, madv: 1 << 16 }),
      anon(5, 7),
      anon(20, 2, {
        kind: 'file-private',
        flags: mapPrivate,
        lazyEligible: false,
        path: file,
        fileFlags: 0,
        backingId: 'a',
      }),
      anon(40, 4, { flags: mapPrivate | mapAnonymous, lazyEligible: true }),
    ]),
  )
  t.equal(content(0, 13), '0123!567....!')
  t.equal([0, 2, 5].map(prot).join(' '), 'rwp r-p rwp')
  t.equal(content(22, 1), '!')
  t.equal(Buffer.from(restorer.skeleton.read(addressOf(base + 20), 3)).toString(), 'fff')
  t.equal(content(40, 1), 'L', 'no longer locked: the content stays')
  t.ok(map.registered.equals(PageSet.of([base, 4], [base + 5, 7], [base + 40, 4])), 'and is registered now')
  t.ok(
    readVmFlags(restorer.pid)
      .get(base + 2)
      ?.has('dd'),
    'MADV_DONTDUMP',
  )
  install(9, 'n')
  install(40, 'M')
  t.equal(content(40, 1), 'M')

  map.discard(PageSet.of([base + 1, 2], [base + 9, 1], [base + 40, 4]))
  t.equal(content(0, 12), '0..3!567....')
  t.equal(content(40, 4), '....')
  t.ok(map.registered.equals(PageSet.of([base, 4], [base + 5, 7], [base + 40, 4])), 'registered as before')
  install(1, 'again')
  t.equal(content(0, 4), '0a.3')
  map.discard(new PageSet())

  map.apply(new AreaMap())
  t.equal(content(0, 12), '!'.repeat(12))
  t.ok(map.registered.isEmpty)
  map.apply(new AreaMap([anon(0, 1)]))
  t.equal(content(0, 2), '.!', 'and it can be used again')
})

t.test('locks and protections come last', async (t) => {
  const { restorer, prot } = await skeleton(t)
  const { map } = restorer
  const flags = mapPrivate | mapAnonymous | mapLocked
  const shared = {
    kind: 'shared-anon',
    flags: mapShared | mapAnonymous,
    lazyEligible: false,
    backingId: 'b',
  } as const
  map.apply(
    new AreaMap([
      anon(0, 2, { flags, lazyEligible: false }),
      anon(2, 1, { flags, prot: 0, lazyEligible: false }),
      anon(4, 4, { flags, lockOnFault: true, lazyEligible: false }),
      anon(10, 2, { ...shared, prot: protRead }),
    ]),
  )
  memory.writeRuns(restorer.skeleton.memFd, Float64Array.of(base + 10, 1), 1, Buffer.alloc(pageBytes, 's'))
  memory.writeRuns(restorer.skeleton.memFd, Float64Array.of(base + 2, 1), 1, Buffer.alloc(pageBytes, 'n'))
  map.finish(new PageSet())
  t.equal(prot(10), 'r-s')
  const vmFlags = readVmFlags(restorer.pid)
  t.ok(vmFlags.get(base)?.has('lo') && vmFlags.get(base + 2)?.has('lo'))
  t.notOk(vmFlags.get(base)?.has('lf'))
  t.ok(vmFlags.get(base + 4)?.has('lo') && vmFlags.get(base + 4)?.has('lf'), 'locked on fault')
  const present = restorer.presentPages()
  t.equal(present.countRange(base, 2), 2, 'a plain lock fills')
  t.equal(present.countRange(base + 4, 4), 0, 'one on fault does not')
  t.equal(Buffer.from(restorer.skeleton.read(addressOf(base + 10), 1)).toString(), 's')
})

t.test("the kernel's own areas move to where the workload had them", async (t) => {
  const { restorer } = await skeleton(t)
  const named = (name: string) => readMaps(restorer.pid).find((line) => line.name === name)
  const own = ['[vvar]', '[vvar_vclock]', '[vdso]'].map(named).filter((line) => line !== undefined)
  const kinds = { '[vvar]': 'vvar', '[vvar_vclock]': 'vvar-vclock', '[vdso]': 'vdso' } as const
  // Exchanged, and onto each other's old places.
  const first = Math.min(...own.map(({ start }) => start))
  let at = first + 1
  const areas = [...own].reverse().map((line) => {
    const placed = anon(0, line.nrPages, {
      start: at,
      kind: kinds[line.name as keyof typeof kinds],
      lazyEligible: false,
      prot: 5,
    })
    at += line.nrPages
    return placed
  })
  restorer.map.apply(new AreaMap(areas))
  for (const [i, line] of [...own].reverse().entries())
    t.equal(named(line.name)?.start, areas[i].start, line.name)
  t.throws(
    () => restorer.map.apply(new AreaMap([...areas, anon(0, 9, { kind: 'vvar', lazyEligible: false })])),
    {
      code: 'REFUSED',
    },
  )
})

t.test('the scratch area gets out of the way', async (t) => {
  const { restorer, content } = await skeleton(t)
  const { skeleton: process } = restorer
  const page = process.scratchPage
  restorer.map.apply(new AreaMap([anon(0, 4, { start: page - 2 })]))
  t.not(process.scratchPage, page)
  t.equal(content(page - 2 - base, 4), '....', "its place is the workload's now")
  t.ok(process.call('brk', 0) >= 0n, 'and calls still work')
})

t.test('files that the destination lacks', async (t) => {
  const { restorer } = await skeleton(t)
  const missing = anon(0, 1, {
    kind: 'file-private',
    flags: mapPrivate,
    lazyEligible: false,
    path: '/no/such/file',
    fileFlags: 0,
    backingId: 'c',
  })
  t.throws(() => restorer.map.apply(new AreaMap([missing])), { code: 'ENOENT' })
  t.ok(existsSync(`/proc/${restorer.pid}`))
  t.notMatch(readFileSync(`/proc/${restorer.pid}/status`, 'utf8'), /State:\s+Z/)
})
