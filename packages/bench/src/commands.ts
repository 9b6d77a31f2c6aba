import { addSettings, integer, settingsOf } from '@pageferry/service/options'
import type { Command } from 'commander'
import type { BlackoutOptions, FaultsOptions, RemoteOptions } from './index.js'
import {
  addLinkOptions,
  addMode,
  addOutputOptions,
  addProbeOptions,
  addRedundancy,
  addRunOptions,
  linkOf,
  type ProbeFlags,
  pagesPerS,
  probeOf,
  type RunFlags,
  sizeMiB,
  sizes,
} from './options.js'

/* `pageferry bench …`. The code of each command is imported when it is run, as for all commands. */

/** Runs work that Ctrl-C ends through the signal. */
export type Interruptible = <T>(message: string, work: (signal: AbortSignal) => Promise<T>) => Promise<T>

const interrupted = 'Interrupted; the lab and everything in it is gone.'

type FaultsFlags = ProbeFlags &
  RunFlags &
  Partial<RemoteOptions> & { mode: FaultsOptions['mode']; push: boolean; prefetch: boolean }

async function faults(flags: FaultsFlags, command: Command, interruptible: Interruptible): Promise<void> {
  const { mode, push, prefetch, runs, source, destination, pid, result } = flags
  const link = linkOf(flags)
  const options = { ...probeOf(flags), ...settingsOf(flags), mode, push, prefetch, runs, link }
  const bench = await import('./index.js')
  if ([source, destination, pid, result].every((given) => given === undefined)) {
    await interruptible(interrupted, (signal) =>
      bench.runInLab(
        flags,
        async (lab, limits, report) => report(await bench.benchFaults(lab, options, limits, signal)),
        { signal, link },
      ),
    )
    return
  }
  if (source === undefined || destination === undefined || pid === undefined || result === undefined) {
    command.error('error: between two machines, --source, --destination, --pid and --result are all needed')
  }
  if (link !== undefined) command.error('error: a relay is put between the hosts of a lab only')
  await interruptible('Interrupted; the services finish or undo the migration.', (signal) =>
    bench.faultsBetweenMachines({ source, destination, pid, result }, options, flags, signal),
  )
}

function addFaults(bench: Command, interruptible: Interruptible): void {
  addSettings(addRunOptions(addMode(addProbeOptions(bench.command('faults')), 'postcopy')), ['prefetch'])
    .description('how long a process waits for its pages after the move, in a lab or between two machines')
    .option('--no-push', 'send pages only on request')
    .option('--source <url>', 'dump-service of the machine where "bench probe" was started')
    .option('--destination <url>', 'restore-service of this machine')
    .option('--pid <pid>', 'the probe, as the source sees it', integer(1, 4_194_304))
    .option('--result <file>', 'the --result of the probe')
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
      process.stdout.write(`${await startProbe(probeOf(flags), resolve(flags.result))}\n`)
    })
}

function addBlackout(bench: Command, interruptible: Interruptible): void {
  addRunOptions(addMode(bench.command('blackout'), 'hybrid'))
    .description('the downtime and its parts')
    .option('--sizes <MiB,MiB,…>', 'memory of the probes', sizes, [64, 512, 2048])
    .option('--dirty-rate <pages/s>', 'pages written at random before the move', pagesPerS, 2000)
    .action(async (flags: RunFlags & { sizes: number[]; mode: BlackoutOptions['mode'] }) => {
      const { sizes: sizesMiB, dirtyRate, mode, runs } = flags
      const { benchBlackout, runInLab } = await import('./index.js')
      const link = linkOf(flags)
      const options = { sizesMiB, dirtyRate, mode, ...settingsOf(flags), runs, link }
      await interruptible(interrupted, (signal) =>
        runInLab(
          flags,
          async (lab, _, report) => {
            for (const benchmark of await benchBlackout(lab, options, signal)) report(benchmark)
          },
          { signal, link },
        ),
      )
    })
}

function addRounds(bench: Command, interruptible: Interruptible): void {
  addRedundancy(addRunOptions(bench.command('precopy')))
    .description('throughput of rounds, compared with a plain socket')
    .option('--size <MiB>', 'memory of the probe', sizeMiB, 512)
    .option('--dirty-rate <pages/s>', 'pages written at random meanwhile', pagesPerS, 0)
    .action(async (flags: RunFlags & { redundancy: number }) => {
      const { size, dirtyRate, redundancy, runs } = flags
      const { benchPrecopy, runInLab } = await import('./index.js')
      const link = linkOf(flags)
      const options = { sizeMiB: size, dirtyRate, redundancy, ...settingsOf(flags), runs, link }
      await interruptible(interrupted, (signal) =>
        runInLab(
          flags,
          async (lab, limits, report) => report(await benchPrecopy(lab, options, limits, signal)),
          { signal, link },
        ),
      )
    })
  addRunOptions(bench.command('slowdown'))
    .description('slowdown of a computing and writing process during rounds')
    .option('--size <MiB>', 'memory of the probe', sizeMiB, 1024)
    .option('--dirty-rate <pages/s>', 'pages written at random', pagesPerS, 10_000)
    .action(async (flags: RunFlags) => {
      const { size, dirtyRate, runs } = flags
      const { benchSlowdown, runInLab } = await import('./index.js')
      const link = linkOf(flags)
      const options = { sizeMiB: size, dirtyRate, ...settingsOf(flags), runs, link }
      await interruptible(interrupted, (signal) =>
        runInLab(flags, async (lab, _, report) => report(await benchSlowdown(lab, options, signal)), {
          signal,
          link,
        }),
      )
    })
}

/** Adds `bench` and everything below it. */
export function addBenchCommands(program: Command, interruptible: Interruptible): void {
  const bench = program
    .command('bench')
    .description('load test: measure migrations against what this machine can do')
  addOutputOptions(addLinkOptions(bench.command('limits')))
    .description('limits of this machine without pageferry')
    .action(async (flags) => {
      const { runInLab } = await import('./index.js')
      const link = linkOf(flags)
      await interruptible(interrupted, (signal) => runInLab(flags, async () => {}, { signal, link }))
    })
  addFaults(bench, interruptible)
  addBlackout(bench, interruptible)
  addRounds(bench, interruptible)
  bench
    .command('all')
    .description('a selection of the benchmarks')
    .option('--output <dir>', 'directory of result.json and index.html', 'bench-results')
    .action(async ({ output }) => {
      const { benchAll } = await import('./index.js')
      await interruptible(interrupted, (signal) => benchAll(output, signal))
    })
  bench
    .command('compare')
    .argument('<a>', 'a file of --json')
    .argument('<b>', 'another one')
    .description('ratios of the results in both files')
    .action(async (a, b) => {
      const { compareFiles } = await import('./index.js')
      process.stdout.write(compareFiles(a, b))
    })
}
