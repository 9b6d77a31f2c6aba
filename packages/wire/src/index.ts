export { decodeFrame, decodeHello, encodeFrame, encodeFrameInto, encodeHeader } from './frames/codec.js'
export {
  type ErrorFrameType,
  errorFromJson,
  errorToFrame,
  errorToJson,
  frameToError,
  fromJsonText,
  toJsonText,
} from './frames/error-frames.js'
export {
  closeCodeOf,
  closeNormal,
  closeReason,
  describeCloseCode,
  ERROR_CLOSE_CODES,
  WIRE_FAULTS,
  WireError,
  type WireFault,
} from './frames/errors.js'
export {
  FRAME_TYPES,
  type Frame,
  type FrameOf,
  type FrameType,
  type HostFacts,
  type NeededFile,
} from './frames/frames.js'
export { hashesToPayload, payloadToHashes } from './frames/hashes.js'
export {
  type Direction,
  type FrameOn,
  isAllowed,
  isFrameOn,
  LANES,
  type Lane,
  type LaneLimits,
  laneLimits,
  type PayloadKind,
  ROUTES,
  type Route,
} from './frames/lanes.js'
export * from './frames/limits.js'
export { pageBytesOf, payloadBytesOf } from './frames/rules.js'
export {
  agree,
  COMPRESSIONS,
  type Compression,
  type CompressionCounts,
  defaultTerms,
  type LaneTerms,
  supportedCompressions,
} from './frames/terms.js'
export { negotiate, supportedVersions } from './frames/versions.js'
