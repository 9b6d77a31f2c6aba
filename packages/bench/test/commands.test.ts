import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Command, CommanderError, InvalidArgumentError } from 'commander'
import t from 'tap'
import { addBenchCommands } from '../src/commands.js'
import { faultsTitle, migrationOf } from '../src/faults.js'
import { DEFAULT_PROBE, PATTERNS } from '../src/probe.js'
import { newResultFile } from '../src/result.js'

/** Parses a command line; what it would run is not run. */
async function parse(...args: string[]): Promise<{ ran: boolean; said: string }> {
  let ran = false
  let said = ''
  const program = new Command('pageferry').exitOverride()
  program.configureOutput({
    writeErr: (text) => {
      said += text
    },
    writeOut: (text) => {
      said += text
    },
  })
  addBenchCommands(program, async () => {
    ran = true
    return undefined as never
  })
  try {
    await program.parseAsync(['node', 'pageferry', 'bench', ...args])
  } catch (error) {
    if (!(error instanceof CommanderError || error instanceof InvalidArgumentError)) throw error
    said += error.message
  }
  return { ran, said }
}

t.test('what is right is run', async (t) => {
  const right = [
    ['limits'],
    ['faults'],
    ...PATTERNS.map((pattern) => ['faults', '--pattern', pattern]),
    [
      'faults',
      '--threads',
      '4',
      '--size',
      '512',
      '--write-ratio',
      '0.5',
      '--think-us',
      '10',
      '--dirty-rate',
      '5000',
    ],
    ['faults', '--mode', 'hybrid', '--bulk-lanes', '2', '--runs', '5', '--no-push', '--no-prefetch'],
    ['blackout', '--sizes', '64,512,2048', '--dirty-rate', '2000'],
    ['precopy', '--bulk-lanes', '2', '--max-bandwidth', '200'],
    ['precopy', '--compression', 'auto', '--bulk-window', '16', '--redundancy', '.75'],
    ['faults', '--compression', 'zstd', '--bulk-window', '1', '--redundancy', '1'],
    ['limits', '--rtt', '10', '--jitter', '.5', '--rate', '100'],
    ['slowdown', '--dirty-rate', '10000'],
    ['all', '--output', 'somewhere'],
  ]
  for (const args of right) t.match(await parse(...args), { ran: true, said: '' }, args.join(' '))
})

t.test('what is wrong gets a sentence', async (t) => {
  const wrong: [string[], RegExp][] = [
    [['nonsense'], /unknown command/],
    [['faults', '--pattern', 'magic'], /Allowed choices are sequential, uniform/],
    [['faults', '--threads', '0'], /whole number from 1 to 64/],
    [['faults', '--write-ratio', '2'], /number from 0 to 1/],
    [['faults', '--size', '1.5'], /whole number/],
    [['faults', '--pid', '7'], /--source, --destination, --pid and --result are all needed/],
    [['blackout', '--sizes', '64,,512'], /whole number/],
    [['blackout', '--mode', 'magic'], /Allowed choices are hybrid, precopy, postcopy/],
    [['slowdown', '--max-bandwidth', '0'], /whole number from 1 to 1000000/],
    [['precopy', '--compression', 'gzip'], /Allowed choices are auto, off, zstd/],
    [['precopy', '--bulk-window', '17'], /whole number from 1 to 16/],
    [['faults', '--redundancy', '1.1'], /number from 0 to 1/],
    [['probe'], /required option '--result <file>'/],
    [['compare', 'one'], /missing required argument 'b'/],
    [['limits', '--rtt', '-1'], /number from 0 to 10000/],
    [['faults', '--rate', 'fast'], /number from 0 to 100000/],
  ]
  for (const [args, sentence] of wrong) {
    const { ran, said } = await parse(...args)
    t.notOk(ran, args.join(' '))
    t.match(said, sentence)
  }
})

t.test('options become a migration and a title', async (t) => {
  const options = { ...DEFAULT_PROBE, mode: 'postcopy' as const, push: true, prefetch: true, runs: 1 }
  t.same(migrationOf(options), {
    mode: 'postcopy',
    bulkLanes: undefined,
    bulkWindowMiB: undefined,
    compression: undefined,
    maxBandwidthMbit: undefined,
    prefetch: true,
  })
  t.equal(
    faultsTitle({ ...options, maxBandwidthMbit: 50, link: { rttMs: 10, jitterMs: 0, rateMbit: 0 } }),
    'faults: 256 MiB uniform, postcopy, at most 50 Mbit/s, 10 ms rtt',
  )
  t.match(migrationOf({ ...options, push: false, prefetch: false }), {
    prefetch: false,
    pushDelayMs: 3_600_000,
  })
  t.equal(faultsTitle(options), 'faults: 256 MiB uniform, postcopy')
  t.match(migrationOf({ ...options, compression: 'zstd', bulkWindowMiB: 2 }), {
    compression: 'zstd',
    bulkWindowMiB: 2,
  })
  t.equal(
    faultsTitle({ ...options, redundancy: 0.75, compression: 'zstd', bulkWindowMiB: 2 }),
    'faults: 256 MiB uniform, postcopy, 75 % redundant, window of 2 MiB, compression zstd',
  )
  t.equal(
    faultsTitle({
      ...options,
      threads: 2,
      writeRatio: 0.5,
      dirtyRate: 10,
      bulkLanes: 2,
      push: false,
      prefetch: false,
    }),
    'faults: 256 MiB uniform, postcopy, 2 threads, 50 % writes, 10 pages/s written before, 2 bulk lanes, no push, no prefetch',
  )
})

t.test('only results can be compared', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'pageferry-'))
  t.teardown(() => rmSync(directory, { recursive: true }))
  const [good, bad, old] = ['good', 'bad', 'old'].map((name) => join(directory, name)) as [
    string,
    string,
    string,
  ]
  writeFileSync(good, JSON.stringify(newResultFile()))
  writeFileSync(bad, 'no JSON')
  writeFileSync(old, JSON.stringify({ ...newResultFile(), schema: 0 }))
  await t.rejects(parse('compare', good, bad), { code: 'BAD_REQUEST' })
  await t.rejects(parse('compare', old, good), { code: 'BAD_REQUEST' })
  await t.rejects(parse('compare', join(directory, 'missing'), good), { code: 'BAD_REQUEST' })
})
