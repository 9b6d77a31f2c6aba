import {
  count,
  digest,
  duration,
  enumeration,
  type Fields,
  flag,
  json,
  list,
  message,
  runs,
  text,
  u32,
  u64,
  type ValuesOf,
  word,
} from './fields.js'
import { LANES } from './lanes.js'
import {
  imagePieceBytes,
  maxBatchPages,
  maxBulkLanes,
  maxBulkWindowBytes,
  maxCommChars,
  maxCompressions,
  maxCpuFlags,
  maxFaultPages,
  maxGhostBytes,
  maxHashPages,
  maxIdChars,
  maxImageBytes,
  maxImageNameChars,
  maxLocksPerFile,
  maxMessageChars,
  maxNameChars,
  maxNeededFiles,
  maxPathChars,
  maxPayloadBytes,
  maxPid,
  maxPort,
  maxRunsPerBatch,
  maxRunsPerDiscard,
  maxRunsPerHashes,
  maxThreads,
  maxTokenChars,
  maxVersions,
  maxZeroPagesPerBatch,
  maxZeroRunsPerBatch,
  minBulkWindowBytes,
  pageLimit,
} from './limits.js'
import { COMPRESSIONS } from './terms.js'

// Protobuf cannot distinguish a missing number from 0, so all identifiers count from 1.
const asId = u32(1)
const round = u32(1)
const pid = count(1, maxPid)
const ghostId = u32(1)
const path = text(maxPathChars, /^\/[^\0]*$/)
const name = text(maxNameChars, /^[^\0]*$/)
/** 0: the payload is plain pages. Otherwise it is one zstd frame of this many bytes, which contains them. */
const zstdBytes = count(0, maxPayloadBytes - 1)
const errorFields = {
  code: text(maxNameChars, /^[A-Z][A-Z_]*$/),
  message: text(maxMessageChars),
  detailsJson: json,
}

const hostFacts = {
  kernelRelease: name,
  machine: name,
  bootId: name,
  /** Empty if the host has no vdso. */
  vdsoSha256: digest(32),
  xcr0: u64,
  xsaveBytes: u32(),
  cpuFlags: list(name, maxCpuFlags),
  vdsoPages: count(0, pageLimit),
  vvarPages: count(0, pageLimit),
}

const neededFile = {
  path,
  bytes: count(),
  write: flag,
  exactSize: flag,
  locks: list(message({ whole: flag, exclusive: flag, start: u64, length: u64 }), maxLocksPerFile),
}

/**
 * The fields of every frame, by its name in the `body` of proto/wire/frames.proto. The types, both codecs and the
 * checks are all derived from this table. Rules between fields are in rules.ts, lanes and directions in lanes.ts.
 */
export const FRAMES = {
  hello: {
    versions: list(u32(1), maxVersions, 1),
    migrationId: text(maxIdChars, /^[A-Za-z0-9_-]+$/),
    token: text(maxTokenChars, /^[\x21-\x7e]+$/),
    lane: enumeration(LANES),
    laneIndex: count(0, maxBulkLanes - 1),
    resume: flag,
    /** May contain names of later versions; unknown names mean nothing. */
    compressions: list(text(maxNameChars, /^[a-z0-9-]+$/), maxCompressions),
  },
  welcome: {
    version: u32(1),
    nrBulkLanes: count(1, maxBulkLanes),
    compression: word(...COMPRESSIONS),
    windowBytes: count(minBulkWindowBytes, maxBulkWindowBytes),
    faultPort: count(1, maxPort),
  },
  refusal: errorFields,

  begin: {
    source: message(hostFacts),
    asId,
    pid,
    comm: text(maxCommChars),
    tids: list(pid, maxThreads, 1),
    residentPages: count(0, pageLimit),
    mode: word('hybrid', 'precopy', 'postcopy'),
    verify: word('off', 'after-resume', 'before-resume'),
    files: list(message(neededFile), maxNeededFiles),
    monotonicNs: u64,
    boottimeNs: u64,
  },
  prepared: { destination: message(hostFacts), pid },

  image: {
    asId,
    round,
    /** A file name, never a path: the destination may store the image under it. */
    name: text(maxImageNameChars, /^[A-Za-z0-9][A-Za-z0-9._-]*$/),
    totalBytes: count(0, maxImageBytes),
    offset: count(0, maxImageBytes - imagePieceBytes),
  },
  ghost: {
    ghostId,
    path,
    mode: count(0, 0o177_777),
    uid: u32(),
    gid: u32(),
    size: count(0, maxGhostBytes),
    atimeNs: u64,
    mtimeNs: u64,
    tmpfileFlags: u32(),
  },
  ghostData: { ghostId, offset: count(0, maxGhostBytes), bytes: count(1, maxPayloadBytes), hole: flag },
  ghostGone: { ghostId },
  roundBegin: { asId, round, final: flag },
  roundEnd: { asId, round, final: flag, batchesPerLane: list(count(), maxBulkLanes) },
  roundApplied: { asId, round, pages: count(), durationMs: duration },
  dumpEnd: { freezeMonotonicNs: u64 },
  ready: { restoreMs: duration, partsJson: json },
  commit: {},
  running: { resumeMs: duration, pid },
  progress: { pendingPages: count(0, pageLimit), faults: count(), installedPages: count() },
  drained: { statsJson: json, errorJson: json },
  released: {},
  kept: {},
  abandoned: { reason: text(maxMessageChars) },
  cancel: errorFields,
  failed: errorFields,
  clockRequest: {},
  clockReply: { monotonicNs: u64, boottimeNs: u64, kernelMonotonicNs: u64, kernelBoottimeNs: u64 },
  hashRequest: { asId, runs: runs(maxRunsPerHashes, maxHashPages) },
  pageHashes: { asId, runs: runs(maxRunsPerHashes, maxHashPages) },

  pageRequest: {
    asId,
    round,
    requestId: u32(1),
    page: count(0, pageLimit - 1),
    nrPages: count(1, maxFaultPages),
    /** No thread waits for these pages yet: the reply leaves out those that were sent already. */
    ahead: flag,
  },
  pageReply: {
    asId,
    round,
    requestId: u32(1),
    page: count(0, pageLimit - 1),
    nrPages: count(1, maxFaultPages),
    runs: runs(maxFaultPages, maxFaultPages),
    zeroRuns: runs(maxFaultPages, maxFaultPages),
    zstdBytes,
  },

  pageBatch: {
    asId,
    round,
    sequence: count(1),
    runs: runs(maxRunsPerBatch, maxBatchPages),
    zeroRuns: runs(maxZeroRunsPerBatch, maxZeroPagesPerBatch),
    zstdBytes,
  },
  batchAck: { sequence: count(1), bytes: count() },
  discard: { asId, round, runs: runs(maxRunsPerDiscard) },
} as const satisfies Record<string, Fields>

export type FrameType = keyof typeof FRAMES

/** One kind of frame, for example `FrameOf<'pageBatch'>`. */
export type FrameOf<K extends FrameType> = { [T in K]: { type: T } & ValuesOf<(typeof FRAMES)[T]> }[K]

/**
 * Any frame, discriminated by `type`. Page numbers, counts and milliseconds are numbers; nanoseconds and xcr0 are
 * bigints. Runs are run tables that end with the array (pass a subarray of a larger one).
 */
export type Frame = FrameOf<FrameType>

/** The machine facts in Begin and Prepared. */
export type HostFacts = ValuesOf<typeof hostFacts>
export type NeededFile = ValuesOf<typeof neededFile>

export const FRAME_TYPES = Object.keys(FRAMES) as FrameType[]
