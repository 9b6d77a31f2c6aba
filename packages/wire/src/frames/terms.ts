import { bulkWindowBytes } from './limits.js'

/** What pages on a connection may be compressed with; `none` is always possible. */
export const COMPRESSIONS = ['none', 'zstd'] as const
export type Compression = (typeof COMPRESSIONS)[number]

/** What Hello and Welcome have settled for one connection. */
export interface LaneTerms {
  readonly compression: Compression
  /** Bytes of pages that a bulk lane may have sent without acknowledgement. */
  readonly windowBytes: number
}

export const defaultTerms: LaneTerms = { compression: 'none', windowBytes: bulkWindowBytes }

/** What this build can undo, for Hello. */
export const supportedCompressions: readonly string[] = ['zstd']

/** The source's answer to the compressions that the destination can undo: its own choice, if that is one of them. */
export function agree(offered: readonly string[], wanted: LaneTerms): LaneTerms {
  return offered.includes(wanted.compression) ? wanted : { ...wanted, compression: 'none' }
}

/** Pages that travelled compressed, and what they took on the wire. */
export interface CompressionCounts {
  pages: number
  bytes: number
}
