import type { MigrationSettings } from '@pageferry/service/client'
import { addSettings, integer } from '@pageferry/service/options'
import { type Command, InvalidArgumentError, Option } from 'commander'
import type { FaultsOptions, LinkOptions, OutputOptions } from './index.js'

/** Options that several commands of `pageferry bench` share, and their parsed form. */

const patterns = ['sequential', 'uniform', 'zipf', 'stride', 'chase', 'shift']

function decimal(smallest: number, largest: number): (text: string) => number {
  return (text) => {
    if (!/^(\d+(\.\d+)?|\.\d+)$/.test(text) || Number(text) < smallest || Number(text) > largest) {
      throw new InvalidArgumentError(`It must be a number from ${smallest} to ${largest}.`)
    }
    return Number(text)
  }
}

/** 1 TiB is more than the memory of any machine that was tested. */
export const sizeMiB = integer(1, 1 << 20)
export const pagesPerS = integer(0, 100_000_000)

export function sizes(text: string): number[] {
  return text.split(',').map((size) => sizeMiB(size.trim()))
}

export interface ProbeFlags {
  pattern: FaultsOptions['pattern']
  threads: number
  size: number
  writeRatio: number
  thinkUs: number
  dirtyRate: number
  redundancy: number
  stallUs?: number
}

const redundancyText = 'share of each page that a compressor leaves out'

export function addRedundancy(command: Command): Command {
  return command.option('--redundancy <0..1>', redundancyText, decimal(0, 1), 0)
}

export function addProbeOptions(command: Command): Command {
  return addRedundancy(command)
    .addOption(new Option('--pattern <pattern>', 'order of the touches').choices(patterns).default('uniform'))
    .option('--threads <n>', 'threads that touch', integer(1, 64), 1)
    .option('--size <MiB>', 'memory of the probe', sizeMiB, 256)
    .option('--write-ratio <0..1>', 'share of the touches that write', decimal(0, 1), 0)
    .option('--think-us <µs>', 'pause of a thread between two touches', integer(0, 60_000_000), 0)
    .option('--dirty-rate <pages/s>', 'pages written at random before the move', pagesPerS, 0)
    .option(
      '--stall-us <µs>',
      'shortest touch that counts as a stall (3; in a lab at least twice the first touch of a present page)',
      decimal(0.001, 1_000_000),
    )
}

export function probeOf({ size, ...flags }: ProbeFlags) {
  const { pattern, threads, writeRatio, thinkUs, dirtyRate, redundancy, stallUs } = flags
  return { pattern, threads, sizeMiB: size, writeRatio, thinkUs, dirtyRate, redundancy, stallUs }
}

export function addMode(command: Command, mode: MigrationSettings['mode']): Command {
  return addSettings(command, ['mode'], { mode })
}

export interface LinkFlags {
  rtt: number
  jitter: number
  rate: number
}

/** Ten seconds of delay are more than a satellite's. 100 Gbit/s are more than a relay in user space could carry. */
export function addLinkOptions(command: Command): Command {
  return command
    .option('--rtt <ms>', 'delay that the link between the hosts adds to a round trip', decimal(0, 10_000), 0)
    .option('--jitter <ms>', 'largest variation of a round trip', decimal(0, 10_000), 0)
    .option('--rate <Mbit/s>', 'rate of the link in each direction (0: no limit)', decimal(0, 100_000), 0)
}

/** undefined: the lab's own link. */
export function linkOf({ rtt, jitter, rate }: LinkFlags): LinkOptions | undefined {
  if (rtt === 0 && jitter === 0 && rate === 0) return undefined
  return { rttMs: rtt, jitterMs: jitter, rateMbit: rate }
}

export interface RunFlags extends OutputOptions, LinkFlags {
  size: number
  dirtyRate: number
  runs: number
}

export function addRunOptions(command: Command): Command {
  return addOutputOptions(
    addLinkOptions(
      addSettings(command, ['bulkLanes', 'bulkWindowMiB', 'compression', 'maxBandwidthMbit']).option(
        '--runs <n>',
        'number of runs; the result is median, minimum and maximum',
        integer(1, 1000),
        3,
      ),
    ),
  )
}

export function addOutputOptions(command: Command): Command {
  return command
    .option('--json <file>', 'write the result as JSON, for "bench compare" too')
    .option('--html <file>', 'write a page with plots that needs no network')
}
