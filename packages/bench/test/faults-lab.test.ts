// test-group: lab
// test-timeout-s: 300
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { withLab } from '@pageferry/lab'
import t from 'tap'
import { benchFaults } from '../src/faults.js'
import { merge } from '../src/histogram.js'
import { DEFAULT_PROBE } from '../src/probe.js'
import { metricNamed, readResultFile } from '../src/result.js'

const program = fileURLToPath(new URL('../../cli/bin/pageferry.js', import.meta.url))

t.test('bench faults: table, JSON and page; the probe has compared its memory', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'pageferry-'))
  t.teardown(() => rmSync(directory, { recursive: true }))
  const [json, html] = [join(directory, 'new/r.json'), join(directory, 'r.html')]
  const args = ['bench', 'faults', '--size', '16', '--runs', '1', '--json', json, '--html', html]
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, ...args], {
    encoding: 'utf8',
    timeout: 200_000,
  })
  t.equal(status, 0, stderr)
  t.match(stdout, /faults: 16 MiB uniform, postcopy/)
  const { benchmarks } = readResultFile(json)
  t.same(
    benchmarks.map(({ benchmark }) => benchmark),
    ['limits', 'faults'],
  )
  const [limits, faults] = benchmarks as [(typeof benchmarks)[0], (typeof benchmarks)[0]]
  t.ok(limits.metrics.every(({ values }) => values.every((value) => value > 0)))
  const touches = faults.histograms.find(({ name }) => name === 'touches')
  t.equal(merge(touches?.runs ?? []).totalCount, 4096)
  const ratios = metricNamed(faults, 'total stall').limits ?? []
  t.equal(ratios.length, 2)
  t.ok((ratios[0]?.value ?? 0) > 0)
  t.ok((ratios[1]?.value ?? 0) > (ratios[0]?.value ?? 0), 'first touches are more work')
  t.ok((metricNamed(faults, 'stall threshold').values[0] ?? 0) >= 3)
  t.match(readFileSync(html, 'utf8'), /16 MiB uniform/)
})

t.test('without push every page is a fault of its own, also with writes, threads and rounds', async (t) => {
  await withLab(async (lab) => {
    const options = { ...DEFAULT_PROBE, sizeMiB: 4, push: false, prefetch: false, runs: 1 } as const
    const alone = await benchFaults(lab, { ...options, mode: 'postcopy' }, undefined)
    t.ok((metricNamed(alone, 'faults that were sent').values[0] ?? 0) >= 1024)
    t.ok((metricNamed(alone, 'touches that stalled').values[0] ?? 0) > 99)
    const mixed = {
      ...options,
      mode: 'hybrid',
      threads: 3,
      writeRatio: 0.5,
      dirtyRate: 2000,
      pattern: 'chase',
    }
    const benchmark = await benchFaults(lab, mixed as never, undefined)
    t.ok((metricNamed(benchmark, 'faults that were sent').values[0] ?? Number.NaN) < 1024)
  })
})

t.test(
  'with prefetch a stream faults once for many pages, also with a stride, and random touches for each',
  async (t) => {
    await withLab(async (lab) => {
      const postcopy = { ...DEFAULT_PROBE, mode: 'postcopy', runs: 1 } as const
      const options = { ...postcopy, sizeMiB: 4, push: false, prefetch: true }
      for (const pattern of ['sequential', 'stride'] as const) {
        const benchmark = await benchFaults(lab, { ...options, pattern }, undefined)
        const value = (name: string) => metricNamed(benchmark, name).values[0] ?? Number.NaN
        t.ok(value('faults that were sent') < 512, `${pattern}: ${value('faults that were sent')} faults`)
        t.ok(value('pages prefetched') > 512)
        // What comes last before a jump shows nowhere, and at this size the stride jumps after 64 pages.
        const share = value('of those, useful') / value('pages prefetched')
        t.ok(share > (pattern === 'stride' ? 0 : 0.8), `${pattern}: ${share} known to be useful`)
      }
      const benchmark = await benchFaults(lab, { ...options, pattern: 'uniform' }, undefined)
      t.ok((metricNamed(benchmark, 'pages prefetched').values[0] ?? Number.NaN) < 64)
    })
  },
)
