import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Restorer, readMaps } from '@pageferry/checkpoint'
import { type Area, AreaMap } from '@pageferry/pages'
import t from 'tap'
import { installRanges, PageInstaller } from '../src/rounds/installer.js'
import { area, base, createRestorer, MAP_LOCKED, pages, read, relative, table } from './fixtures/skeleton.js'

const none = new Float64Array(0)
const noBytes = new Uint8Array(0)

function installerOf({ uffd, skeleton, map }: Restorer): PageInstaller {
  return new PageInstaller(uffd, skeleton.memFd, installRanges(map))
}

t.test('memory under userfaultfd', async (t) => {
  const restorer = await createRestorer(t)
  const readOnly = area(16, 4, 'anon', { prot: 1 })
  const noAccess = area(20, 4, 'anon', { prot: 0 })
  restorer.map.apply(new AreaMap([area(0, 16, 'anon'), readOnly, noAccess]))
  const installer = installerOf(restorer)
  t.same(relative(restorer.map.registered), [[0, 24]])

  installer.installBatch(table([2, 2], [6, 1]), pages(1, 2, 3), table([8, 2]))
  t.same(relative(restorer.presentPages()), [
    [2, 2],
    [6, 1],
    [8, 2],
  ])
  t.same(read(restorer, 2, 2), [1, 2])
  t.same(read(restorer, 6, 1), [3])
  t.same(read(restorer, 8, 2), [0, 0])

  // A later round: some are there, some are not, in one run.
  installer.installBatch(table([1, 4]), pages(11, 12, 13, 14), table([6, 1]))
  t.same(read(restorer, 1, 4), [11, 12, 13, 14])
  t.same(read(restorer, 6, 1), [0], 'zeros overwrite too')
  t.same(relative(restorer.presentPages()), [
    [1, 4],
    [6, 1],
    [8, 2],
  ])

  // One run over three areas, two of which the process itself may not write.
  installer.installBatch(table([15, 7]), pages(21, 22, 23, 24, 25, 26, 27), none)
  t.same(read(restorer, 15, 7), [21, 22, 23, 24, 25, 26, 27])
  installer.installBatch(table([15, 7]), pages(31, 32, 33, 34, 35, 36, 37), none)
  t.same(read(restorer, 15, 7), [31, 32, 33, 34, 35, 36, 37])
})

t.test('many zeros at once', async (t) => {
  const restorer = await createRestorer(t)
  restorer.map.apply(new AreaMap([area(0, 2000, 'anon')]))
  const installer = installerOf(restorer)
  installer.installBatch(table([500, 1]), pages(9), none)
  installer.installBatch(none, noBytes, table([1, 1000], [1500, 300]))
  t.same(relative(restorer.presentPages()), [
    [1, 1000],
    [1500, 300],
  ])
  t.ok(read(restorer, 1, 1000).every((byte) => byte === 0))
})

t.test('memory that is not under userfaultfd', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pageferry-installer-'))
  t.teardown(() => rmSync(dir, { recursive: true }))
  const path = join(dir, 'file')
  writeFileSync(path, pages(101, 102, 103, 104))
  const restorer = await createRestorer(t)
  restorer.map.apply(
    new AreaMap([
      area(0, 4, 'anon'),
      area(4, 4, 'anon', { flags: MAP_LOCKED }),
      area(8, 4, 'file-private', { path, prot: 5 }),
      area(12, 4, 'shared-anon'),
    ]),
  )
  const installer = installerOf(restorer)
  t.same(relative(restorer.map.registered), [[0, 4]])

  // From registered into unregistered memory in one run.
  installer.installBatch(table([2, 4], [9, 1]), pages(1, 2, 3, 4, 5), table([11, 3]))
  t.same(read(restorer, 2, 4), [1, 2, 3, 4])
  t.same(read(restorer, 8, 4), [101, 5, 103, 0], 'the other pages are the file')
  t.same(read(restorer, 12, 2), [0, 0])
  t.ok(readFileSync(path).equals(pages(101, 102, 103, 104)), 'which has not changed')

  installer.installBatch(table([4, 2], [9, 1], [12, 1]), pages(13, 14, 15, 16), none)
  t.same(read(restorer, 2, 4), [1, 2, 13, 14])
  t.same(read(restorer, 8, 5), [101, 15, 103, 0, 16])
})

t.test('what is not memory of the process is refused, and nothing of the batch is installed', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pageferry-installer-'))
  t.teardown(() => rmSync(dir, { recursive: true }))
  const path = join(dir, 'file')
  writeFileSync(path, pages(101, 102))
  const restorer = await createRestorer(t)
  const kernelAreas = readMaps(restorer.pid)
    .filter(({ name }) => ['[vdso]', '[vvar]', '[vvar_vclock]'].includes(name))
    .map(({ name, start, nrPages }): Area => {
      const kind = name.slice(1, -1).replace('_', '-') as Area['kind']
      return { ...area(start - base, nrPages, kind), flags: 2 }
    })
  restorer.map.apply(new AreaMap([...kernelAreas, area(0, 8, 'anon'), area(8, 2, 'file-shared', { path })]))
  const installer = installerOf(restorer)
  installer.installBatch(table([7, 1]), pages(7), none)

  const at = (kind: Area['kind']) => (kernelAreas.find((each) => each.kind === kind)?.start ?? 0) - base
  const cases: [what: string, runs: [number, number][], zeroRuns: [number, number][], reason: RegExp][] = [
    ['not mapped', [[100, 1]], [], /is in no area whose pages are moved$/],
    ['the page before', [[-1, 1]], [], /is in no area whose pages are moved$/],
    [
      'a good run and a bad one',
      [
        [0, 2],
        [100, 1],
      ],
      [],
      /is in no area whose pages are moved$/,
    ],
    ['good pages and bad zeros', [[0, 2]], [[100, 1]], /is in no area whose pages are moved$/],
    ['a run that ends in a shared file', [[7, 2]], [], /is in no area whose pages are moved$/],
    ['zeros in a shared file', [], [[8, 2]], /is in no area whose pages are moved$/],
    ['the vdso', [[at('vdso'), 1]], [], /is in no area whose pages are moved$/],
    ['its data', [[at('vvar'), 1]], [], /is in no area whose pages are moved$/],
  ]
  if (kernelAreas.some(({ kind }) => kind === 'vvar-vclock')) {
    cases.push(['its clocks', [[at('vvar-vclock'), 1]], [], /is in no area whose pages are moved$/])
  }
  for (const [what, runs, zeroRuns, message] of cases) {
    const nrPages = runs.reduce((sum, [, nr]) => sum + nr, 0)
    const bytes = pages(...Array.from({ length: nrPages }, () => 99))
    const install = (): void => installer.installBatch(table(...runs), bytes, table(...zeroRuns))
    t.throws(install, { code: 'PROTOCOL', closeCode: 4108, message }, what)
  }
  t.same(relative(restorer.presentPages()), [[7, 1]])
  t.same(read(restorer, 7, 1), [7])
  t.ok(readFileSync(path).equals(pages(101, 102)))
})
