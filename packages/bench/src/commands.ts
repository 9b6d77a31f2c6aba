import { type Command, InvalidArgumentError, Option } from 'commander'
import type { FaultsOptions, OutputOptions, RemoteOptions } from './index.js'

/*
 * The options of `pageferry bench …`. What does the work is imported when it is run, as all commands are.
 */

/** Runs something that Ctrl-C ends through the signal. */
export type Interruptible = <T>(message: string, work: (signal: AbortSignal) => Promise<T>) => Promise<T>

const interrupted = 'Interrupted; the lab and everything in it is gone.'

const patterns = ['sequential', 'uniform', 'zipf', 'stride', 'chase', 'shift']
const modes = ['hybrid', 'precopy', 'postcopy']

export function integer(smallest: number, largest: number): (text: string) => number {
  return (text) => {
    if (!/^\d{1,15}$/.test(text) || Number(text) < smallest || Number(text) > largest) {
      throw new InvalidArgumentError(`It must be a whole number from ${smallest} to ${largest}.`)
    }
    return Number(text)
  }
}

/** 1 TiB of memory is more than any machine that this was tried on. */
const sizeMiB = integer(1, 1 << 20)

function sizes(text: string): number[] {
  return text.split(',').map((size) => sizeMiB(size.trim()))
}

function ratio(text: string): number {
  if (!/^(0|1|0?\.\d+|1\.0+|0\.0+)$/.test(text))
    throw new InvalidArgumentError('It must be a number from 0 to 1.')
  return Number(text)
}

function addProbeOptions(command: Command): Command {
  return command
    .addOption(new Option('--pattern <pattern>', 'order of the touches').choices(patterns).default('uniform'))
    .option('--threads <n>', 'threads that touch', integer(1, 64), 1)
    .option('--size <MiB>', 'memory of the probe', sizeMiB, 256)
    .option('--write-ratio <0..1>', 'share of the touches that write', ratio, 0)
    .option('--think-us <µs>', 'pause of a thread between two touches', integer(0, 60_000_000), 0)
    .option('--dirty-rate <pages/s>', 'pages written at random before the move', integer(0, 100_000_000), 0)
}

function addMode(command: Command, mode: string): Command {
  return command.addOption(new Option('--mode <mode>', 'how memory moves').choices(modes).default(mode))
}

function addRunOptions(command: Command): Command {
  return command
    .option('--bulk-lanes <n>', 'connections that carry pages', integer(1, 8))
    .option('--runs <n>', 'how often; median, minimum and maximum are shown', integer(1, 1000), 3)
}

function addOutputOptions(command: Command): Command {
  return command
    .option('--json <file>', 'write the result as JSON, for "bench compare" too')
    .option('--html <file>', 'write a page with plots that needs no network')
}

interface ProbeFlags {
  pattern: FaultsOptions['pattern']
  threads: number
  size: number
  writeRatio: number
  thinkUs: number
  dirtyRate: number
}

interface RunFlags extends OutputOptions {
  size: number
  dirtyRate: number
  bulkLanes?: number
  runs: number
}

type FaultsFlags = ProbeFlags &
  RunFlags &
  Partial<RemoteOptions> & { mode: FaultsOptions['mode']; push: boolean }

function probeOf({ pattern, threads, size, writeRatio, thinkUs, dirtyRate }: ProbeFlags) {
  return { pattern, threads, sizeMiB: size, writeRatio, thinkUs, dirtyRate }
}

async function faults(flags: FaultsFlags, command: Command, interruptible: Interruptible): Promise<void> {
  const { mode, bulkLanes, push, runs, source, destination, pid, result } = flags
  const bench = await import('./index.js')
  const options = { ...probeOf(flags), mode, bulkLanes, push, runs }
  const remote = [source, destination, pid, result]
  if (remote.every((given) => given === undefined)) {
    await interruptible(interrupted, (signal) =>
      bench.runInLab(
        flags,
        async (lab, limits, report) => report(await bench.benchFaults(lab, options, limits, signal)),
        { signal },
      ),
    )
    return
  }
  if (source === undefined || destination === undefined || pid === undefined || result === undefined) {
    command.error('error: between two machines, --source, --destination, --pid and --result are all needed')
  }
  await interruptible('Interrupted; the services finish or undo the migration.', (signal) =>
    bench.faultsBetweenMachines({ source, destination, pid, result }, options, flags, signal),
  )
}

/** Adds `bench` and everything below it. */
export function addBenchCommands(program: Command, interruptible: Interruptible): void {
  const bench = program
    .command('bench')
    .description('load test: measure migrations against what this machine can do')
  addOutputOptions(bench.command('limits'))
    .description('what this machine can do without pageferry')
    .action(async (flags) => {
      const { runInLab } = await import('./index.js')
      await interruptible(interrupted, (signal) => runInLab(flags, async () => {}, { signal }))
    })
  addOutputOptions(addRunOptions(addMode(addProbeOptions(bench.command('faults')), 'postcopy')))
    .description('how long a process waits for its pages after the move, in a lab or between two machines')
    .option('--no-push', 'pages travel only when they are asked for')
    .option('--source <url>', 'dump-service of the machine where "bench probe" was started')
    .option('--destination <url>', 'restore-service of this machine')
    .option('--pid <pid>', 'the probe, as the source sees it', integer(1, 4_194_304))
    .option('--result <file>', 'the --result that the probe was given')
    .action((flags, command) => faults(flags, command, interruptible))
  addProbeOptions(bench.command('probe'))
    .description('start a probe on this machine and leave it there, to be moved by "bench faults --source"')
    .requiredOption(
      '--result <file>',
      'where it writes what it measured, on the machine that it was moved to',
    )
    .action(async (flags) => {
      const { startProbe } = await import('./index.js')
      const { resolve } = await import('node:path')
      const pid = await startProbe(probeOf(flags), resolve(flags.result))
      process.stdout.write(`${pid}\n`)
    })
  addOutputOptions(addRunOptions(addMode(bench.command('blackout'), 'hybrid')))
    .description('the pause, and its parts')
    .option('--sizes <MiB,MiB,…>', 'memory of the probes', sizes, [64, 512, 2048])
    .option(
      '--dirty-rate <pages/s>',
      'pages written at random before the move',
      integer(0, 100_000_000),
      2000,
    )
    .action(async ({ sizes: sizesMiB, dirtyRate, mode, bulkLanes, runs, ...output }) => {
      const { benchBlackout, runInLab } = await import('./index.js')
      const options = { sizesMiB, dirtyRate, mode, bulkLanes, runs }
      await interruptible(interrupted, (signal) =>
        runInLab(
          output,
          async (lab, _, report) => {
            for (const benchmark of await benchBlackout(lab, options, signal)) report(benchmark)
          },
          { signal },
        ),
      )
    })
  addOutputOptions(addRunOptions(bench.command('precopy')))
    .description('throughput of rounds, compared with a plain socket')
    .option('--size <MiB>', 'memory of the probe', sizeMiB, 512)
    .option('--dirty-rate <pages/s>', 'pages written at random meanwhile', integer(0, 100_000_000), 0)
    .action(async ({ size, dirtyRate, bulkLanes, runs, ...output }: RunFlags) => {
      const { benchPrecopy, runInLab } = await import('./index.js')
      const options = { sizeMiB: size, dirtyRate, bulkLanes, runs }
      await interruptible(interrupted, (signal) =>
        runInLab(
          output,
          async (lab, limits, report) => report(await benchPrecopy(lab, options, limits, signal)),
          { signal },
        ),
      )
    })
  addOutputOptions(addRunOptions(bench.command('slowdown')))
    .description('what a computing and writing process loses while rounds run')
    .option('--size <MiB>', 'memory of the probe', sizeMiB, 1024)
    .option('--dirty-rate <pages/s>', 'pages written at random', integer(0, 100_000_000), 10_000)
    .action(async ({ size, dirtyRate, bulkLanes, runs, ...output }: RunFlags) => {
      const { benchSlowdown, runInLab } = await import('./index.js')
      const options = { sizeMiB: size, dirtyRate, bulkLanes, runs }
      await interruptible(interrupted, (signal) =>
        runInLab(output, async (lab, _, report) => report(await benchSlowdown(lab, options, signal)), {
          signal,
        }),
      )
    })
  bench
    .command('all')
    .description('a selection of everything, in about ten minutes')
    .option('--output <dir>', 'where result.json and index.html go', 'bench-results')
    .action(async ({ output }) => {
      const { benchAll } = await import('./index.js')
      await interruptible(interrupted, (signal) => benchAll(output, signal))
    })
  bench
    .command('compare')
    .argument('<a>', 'a file of --json')
    .argument('<b>', 'another one')
    .description('ratios of what both have measured')
    .action(async (a, b) => {
      const { compareFiles } = await import('./index.js')
      process.stdout.write(compareFiles(a, b))
    })
}
