import { bulkWindowBytes } from './limits.js'

/** Compressions of pages on a connection; `none` is always possible. */
export const COMPRESSIONS = ['none', 'zstd'] as const
export type Compression = (typeof COMPRESSIONS)[number]

/** The result of Hello and Welcome for one connection. */
export interface LaneTerms {
  readonly compression: Compression
  /** Bytes of pages that a bulk lane may have sent without acknowledgement. */
  readonly windowBytes: number
}

export const defaultTerms: LaneTerms = { compression: 'none', windowBytes: bulkWindowBytes }

/** Compressions that this build can decompress, for Hello. */
export const supportedCompressions: readonly string[] = ['zstd']

/** The source's answer to the destination's compressions: its own choice, if the destination has it. */
export function agree(offered: readonly string[], wanted: LaneTerms): LaneTerms {
  return offered.includes(wanted.compression) ? wanted : { ...wanted, compression: 'none' }
}

/** Pages that travelled compressed, and their bytes on the wire. */
export interface CompressionCounts {
  pages: number
  bytes: number
}
