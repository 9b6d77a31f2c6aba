import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import {
  DEFAULT_PROBE,
  PATTERNS,
  type ProbeOptions,
  probeCommand,
  readProbeResult,
  requireRight,
} from '../src/probe.js'

const directory = mkdtempSync(join(tmpdir(), 'pageferry-'))
t.teardown(() => rmSync(directory, { recursive: true }))

let runs = 0

/** Runs the probe without moving it. */
function probe(options: Partial<ProbeOptions>, ...more: string[]) {
  const path = join(directory, `${++runs}.json`)
  const command = probeCommand({ ...DEFAULT_PROBE, sizeMiB: 4, ...options }, path, ['--now', ...more])
  const { status, stderr } = spawnSync(command[0] as string, command.slice(1), {
    encoding: 'utf8',
    timeout: 30_000,
  })
  return { status, stderr, result: existsSync(path) ? readProbeResult(path) : null }
}

for (const pattern of PATTERNS) {
  t.test(`${pattern}: as many touches as pages, and all bytes right`, async (t) => {
    for (const threads of [1, 3]) {
      const { status, stderr, result } = probe({ pattern, threads, writeRatio: 0.5 })
      t.equal(status, 0, stderr)
      const { touches, pages, wrongPages } = result as NonNullable<typeof result>
      t.equal(pages, 1024)
      t.equal(wrongPages, 0)
      t.equal(touches.count, pages)
      const sum = (numbers: number[]): number => numbers.reduce((total, number) => total + number, 0)
      t.equal(sum(touches.buckets.map(([, count]) => count)), touches.count, 'each is in the histogram')
      t.equal(sum(touches.series.touches), touches.count, 'and in the series')
      t.equal(sum(touches.series.stalls), touches.stalls)
      t.ok(touches.stallNs <= touches.sumNs && touches.maxNs <= touches.sumNs)
    }
  })
}

t.test('one wrong bit anywhere is found', async (t) => {
  for (const page of [0, 1, 511, 1023]) {
    const { status, stderr, result } = probe({ pattern: 'zipf', writeRatio: 1 }, '--corrupt', String(page))
    t.equal(status, 1)
    t.match(stderr, `1 wrong pages, the first is ${page}`)
    t.match(result, { wrongPages: 1, firstWrongPage: page })
    t.throws(() => requireRight(result as NonNullable<typeof result>), { code: 'VERIFY_FAILED' })
  }
})

t.test('thinking takes its time', async (t) => {
  const { result } = probe({ sizeMiB: 1, thinkUs: 100 })
  t.ok((result?.touchNs ?? 0) >= 256 * 100_000, `${result?.touchNs} ns for 256 touches`)
})

t.test('wrong options: status 2', async (t) => {
  const wrong = [
    ['--pattern', 'magic'],
    ['--size', '0'],
    ['--threads', '65'],
    ['--write-ratio', '1.5'],
    ['--corrupt', '1024'],
    ['--result', '/nonexistent/result.json'],
    ['rest'],
  ]
  for (const options of wrong) t.equal(probe({}, ...options).status, 2, options.join(' '))
})
