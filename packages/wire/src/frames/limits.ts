import { KiB, MiB, pageBytes } from '@pageferry/base'

/**
 * Every limit of the protocol, with its unit in the name and its reason. The encoder refuses a frame beyond a limit,
 * and so does the decoder. So a wrong number shows on the side that made it.
 */

/** Linux numbers pages of user memory below 2^47 bytes (four-level page tables) with 35 bits. Exclusive end. */
export const pageLimit = 2 ** 35

/** Pages in one page batch: 1 MiB takes 0.8 ms at 10 Gbit/s, and a fault reply may wait for that long behind it. */
export const maxBatchPages = 256
/** Bytes behind the header of any frame: one full batch, and the same for image pieces and hashes. */
export const maxPayloadBytes = maxBatchPages * pageBytes
/** Runs of content in one batch: every page may stand alone. */
export const maxRunsPerBatch = maxBatchPages
/** Runs of zero pages in one batch; with 256 runs of content it fills at most 13 of the header's 16 KiB. */
export const maxZeroRunsPerBatch = 1024
/** Pages that one batch may call zero: 256 MiB of them occupy the installing thread for a few milliseconds. */
export const maxZeroPagesPerBatch = 65_536
/** Runs of one Discard. An munmap of any size is a single run, so their pages are not limited. */
export const maxRunsPerDiscard = 1024
/** Pages of one fault: 256 KiB. More read-ahead would delay the page that the workload waits for. */
export const maxFaultPages = 64
/** Hashes in one PageHashes frame: reading and hashing 4 MiB occupies the source's main thread for 1 to 2 ms. */
export const maxHashPages = 1024
/** Runs of one HashRequest and its answer: every page may stand alone. At most 10 KiB of header. */
export const maxRunsPerHashes = maxHashPages
/** HashRequests that the destination may have open: while one crosses the wire the next is hashed. */
export const hashRequestsMax = 4

/** Bytes of a header on the fault and bulk lanes, and of the frames that carry a payload (worst case: a batch). */
export const maxPageHeaderBytes = 16 * KiB
/** Bytes of a header on the control lane: Begin lists some ten thousand files at 100 bytes each. */
export const maxControlHeaderBytes = MiB
/** Bytes of a Hello frame. It is parsed before the token is checked, so it gets little memory. */
export const maxHelloBytes = 4 * KiB
/** Bytes of the u32 in front of the header. */
export const lengthPrefixBytes = 4
/**
 * Bytes kept free in front of the payload of a pooled buffer, for `encodeFrameInto`. A multiple of the page size, so
 * that pages in a page-aligned buffer stay aligned.
 */
export const headerReserveBytes = 5 * pageBytes
/** Bytes of a pooled buffer: reserve and one full payload. */
export const frameBufferBytes = headerReserveBytes + maxPayloadBytes
/** Bytes of the largest frame on any lane. Lanes have their own, see `laneLimits`. */
export const maxFrameBytes = lengthPrefixBytes + maxPageHeaderBytes + maxPayloadBytes

/** Bytes of one image file; the largest by far is the pagemap of a fragmented process, some tens of MiB. */
export const maxImageBytes = 256 * MiB
/** Bytes of every piece of an image except its last one. */
export const imagePieceBytes = maxPayloadBytes
/** Characters of an image's name. */
export const maxImageNameChars = 64

/** Where a file without a name may end: what ext4 allows a file, 16 TiB. Most of one that large is a hole. */
export const maxGhostBytes = 2 ** 44

/** Threads of one process; 16384 at 3 bytes each leave most of Begin's header to the files. */
export const maxThreads = 16_384
/** Files that the memory map and the descriptors need. */
export const maxNeededFiles = 16_384
/** PID_MAX_LIMIT of 64-bit Linux. */
export const maxPid = 4_194_304
/** TCP ports have 16 bits. */
export const maxPort = 65_535
/** Locks of a needed file that are tried before the migration. All of them are taken in its freeze. */
export const maxLocksPerFile = 16
/** PATH_MAX. */
export const maxPathChars = 4096
/** TASK_COMM_LEN. */
export const maxCommChars = 16
/** Length of utsname fields, boot id and names of our own. */
export const maxNameChars = 64
/** /proc/cpuinfo lists about 150 on current machines. */
export const maxCpuFlags = 1024
/** Protocol versions in a Hello. */
export const maxVersions = 32
/** Characters of a migration id and of a token: random bytes in base64url. */
export const maxIdChars = 64
export const maxTokenChars = 128
/** Characters of an error's message: one sentence. */
export const maxMessageChars = 2048
/** Characters of JSON in details, statistics and report parts: every problem of a preflight fits. */
export const maxJsonChars = 64 * KiB

/** Bulk lanes of a migration: one fills 10 Gbit/s, and each costs a thread on both sides. */
export const maxBulkLanes = 16
/**
 * Default limit for the bytes of pages in flight on a bulk lane without acknowledgement: 10 Gbit/s times 3 ms, and no
 * more queueing than that. Both sides count pages as they are installed, compressed or not. So the window bounds the
 * memory that the destination may need as well as the bytes in flight.
 */
export const bulkWindowBytes = 4 * MiB
/** A window must hold one batch. */
export const minBulkWindowBytes = maxPayloadBytes
/** The destination may have to store one window of batches that overtake the message with their target. */
export const maxBulkWindowBytes = 16 * MiB
/** Names in a Hello's list of compressions. */
export const maxCompressions = 8
/** Batches in flight on one lane, so that small batches do not pile up without bound below the window. */
export const bulkWindowBatches = 256
/** Requests that the destination keeps open on the fault lane. Each thread of a workload can wait for one page. */
export const faultPendingMax = 1024
/** How long a new connection may take to say Hello, and then to be answered. Two round trips of a bad link. */
export const helloTimeoutMs = 5000
