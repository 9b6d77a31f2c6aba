import { KiB, MiB, PageferryError } from '@pageferry/base'
import type { Messages } from './types.js'

/** First word of every image file but the inventory. */
export const COMMON_MAGIC = 0x54564319

/** The format of one kind of image file; proto/README.md draws the layouts. */
export interface ImageKind {
  /** File name without `.img`; `%u` is the id of the task, thread or object. */
  readonly pattern: string
  /** Little-endian words at the start of the file. */
  readonly magics: readonly number[]
  readonly message: keyof Messages
  /** One message, or any number of them. */
  readonly cardinality: 'one' | 'many'
  /** The field with the number of raw bytes that follow the message, at most `maxTrailingBytes` of them. */
  readonly trailing?: { readonly lengthField: 'bytes'; readonly maxTrailingBytes: number }
  /** Largest encoded message that is written or accepted. */
  readonly maxMessageBytes: number
  /** Most messages that are written or accepted. */
  readonly maxMessages: number
}

/** Messages with a fixed number of small fields. */
const smallBytes = 4 * KiB
/** A FileEntry holds a path (PATH_MAX 4096) and little else. */
const fileBytes = 16 * KiB
/** 8 MiB are 60,000 queued signals, or 200,000 VMAs of 40 bytes (vm.max_map_count is 65,530 unless raised). */
const largeBytes = 8 * MiB
/** fs.nr_open as shipped: the highest descriptor number + 1. */
const maxDescriptors = 1024 * 1024
/** One per process. A migration of more processes than this would not fit its other limits either. */
const maxTasks = 65_536
/** fs.pipe-max-size is 1 MiB unless raised; root may go further. */
const maxPipeBytes = 64 * MiB

/** Every image file with protobuf messages, except pagemaps (pagemap.ts) and pages, which have no framing at all. */
export const IMAGE_KINDS = {
  inventory: {
    pattern: 'inventory',
    magics: [0x58313116],
    message: 'InventoryEntry',
    cardinality: 'one',
    maxMessageBytes: smallBytes,
    maxMessages: 1,
  },
  pstree: {
    pattern: 'pstree',
    magics: [COMMON_MAGIC, 0x50273030],
    message: 'PstreeEntry',
    cardinality: 'many',
    maxMessageBytes: 512 * KiB, // 6 bytes per tid
    maxMessages: maxTasks,
  },
  ids: {
    pattern: 'ids-%u',
    magics: [COMMON_MAGIC, 0x54432030],
    message: 'TaskKobjIdsEntry',
    cardinality: 'one',
    maxMessageBytes: smallBytes,
    maxMessages: 1,
  },
  core: {
    pattern: 'core-%u',
    magics: [COMMON_MAGIC, 0x55053847],
    message: 'CoreEntry',
    cardinality: 'one',
    maxMessageBytes: largeBytes,
    maxMessages: 1,
  },
  mm: {
    pattern: 'mm-%u',
    magics: [COMMON_MAGIC, 0x57492820],
    message: 'MmEntry',
    cardinality: 'one',
    maxMessageBytes: largeBytes,
    maxMessages: 1,
  },
  fdinfo: {
    pattern: 'fdinfo-%u',
    magics: [COMMON_MAGIC, 0x56213732],
    message: 'FdinfoEntry',
    cardinality: 'many',
    maxMessageBytes: smallBytes,
    maxMessages: maxDescriptors,
  },
  files: {
    pattern: 'files',
    magics: [COMMON_MAGIC, 0x56303138],
    message: 'FileEntry',
    cardinality: 'many',
    maxMessageBytes: fileBytes,
    maxMessages: maxDescriptors,
  },
  'remap-fpath': {
    pattern: 'remap-fpath',
    magics: [COMMON_MAGIC, 0x59133954],
    message: 'RemapFilePathEntry',
    cardinality: 'many',
    maxMessageBytes: smallBytes,
    maxMessages: maxDescriptors,
  },
  filelocks: {
    pattern: 'filelocks',
    magics: [COMMON_MAGIC, 0x54323616],
    message: 'FileLockEntry',
    cardinality: 'many',
    maxMessageBytes: smallBytes,
    maxMessages: maxDescriptors,
  },
  'pipes-data': {
    pattern: 'pipes-data',
    magics: [COMMON_MAGIC, 0x56453709],
    message: 'PipeDataEntry',
    cardinality: 'many',
    trailing: { lengthField: 'bytes', maxTrailingBytes: maxPipeBytes },
    maxMessageBytes: smallBytes,
    maxMessages: maxDescriptors,
  },
  fs: {
    pattern: 'fs-%u',
    magics: [COMMON_MAGIC, 0x51403912],
    message: 'FsEntry',
    cardinality: 'one',
    maxMessageBytes: smallBytes,
    maxMessages: 1,
  },
  timens: {
    pattern: 'timens-%u',
    magics: [COMMON_MAGIC, 0x43114433],
    message: 'TimensEntry',
    cardinality: 'one',
    maxMessageBytes: smallBytes,
    maxMessages: 1,
  },
  seccomp: {
    pattern: 'seccomp',
    magics: [COMMON_MAGIC, 0x64413049],
    message: 'SeccompEntry',
    cardinality: 'one',
    maxMessageBytes: largeBytes,
    maxMessages: 1,
  },
} as const satisfies Record<string, ImageKind>

export type ImageKindName = keyof typeof IMAGE_KINDS

/** The message of a kind, or the array of them. */
export type ImageContent<K extends ImageKindName> = (typeof IMAGE_KINDS)[K]['cardinality'] extends 'many'
  ? Messages[(typeof IMAGE_KINDS)[K]['message']][]
  : Messages[(typeof IMAGE_KINDS)[K]['message']]

/** Files that `encodeImage` does not write. */
const otherPatterns = {
  pagemap: 'pagemap-%u',
  'pagemap-shmem': 'pagemap-shmem-%u',
  pages: 'pages-%u',
} as const

/**
 * Returns the name of an image file, for example `core-1234.img`. `id` is given for exactly the kinds that have one.
 */
export function imageFileName(kind: ImageKindName | keyof typeof otherPatterns, id?: number): string {
  const pattern = Object.hasOwn(otherPatterns, kind)
    ? otherPatterns[kind as keyof typeof otherPatterns]
    : IMAGE_KINDS[kind as ImageKindName].pattern
  if (pattern.includes('%u') !== (id !== undefined)) {
    throw new PageferryError(
      'INTERNAL',
      `image ${kind}: ${id === undefined ? 'an id is missing' : 'it has no id'}`,
    )
  }
  return `${pattern.replace('%u', String(id))}.img`
}
