import type { MigrationOptions } from '@pageferry/service/client'
import { describeLink, type LinkOptions } from './link/options.js'

/** How pages travel, for every benchmark that migrates: options of the migration, and the link. */
export interface TransportOptions
  extends Pick<MigrationOptions, 'bulkLanes' | 'bulkWindowMiB' | 'compression' | 'maxBandwidthMbit'> {
  link?: LinkOptions
}

/** The migration's part of the options. */
export function transportOf(options: TransportOptions): Omit<TransportOptions, 'link'> {
  const { bulkLanes, bulkWindowMiB, compression, maxBandwidthMbit } = options
  return { bulkLanes, bulkWindowMiB, compression, maxBandwidthMbit }
}

/** The unusual options, for a benchmark's title; without the number of lanes, which each names in its own way. */
export function describeTransport(options: TransportOptions): string[] {
  const { bulkWindowMiB, compression, maxBandwidthMbit, link } = options
  return [
    ...(bulkWindowMiB === undefined ? [] : [`window of ${bulkWindowMiB} MiB`]),
    ...(compression === undefined ? [] : [`compression ${compression}`]),
    ...(maxBandwidthMbit === undefined ? [] : [`at most ${maxBandwidthMbit} Mbit/s`]),
    ...(link === undefined ? [] : [describeLink(link)]),
  ]
}
