export { decodeFrame, decodeHello, encodeFrame, encodeFrameInto, encodeHeader } from './codec.js'
export {
  type ErrorFrameType,
  errorToFrame,
  frameToError,
  fromJsonText,
  toJsonText,
} from './error-frames.js'
export {
  closeCodeOf,
  closeNormal,
  closeReason,
  describeCloseCode,
  ERROR_CLOSE_CODES,
  WIRE_FAULTS,
  WireError,
  type WireFault,
} from './errors.js'
export {
  FRAME_TYPES,
  type Frame,
  type FrameOf,
  type FrameType,
  type HostFacts,
  type NeededFile,
} from './frames.js'
export { hashesToPayload, payloadToHashes } from './hashes.js'
export {
  type Direction,
  faultLanePath,
  isAllowed,
  LANES,
  type Lane,
  type LaneLimits,
  laneLimits,
  type PayloadKind,
  ROUTES,
  type Route,
} from './lanes.js'
export * from './limits.js'
export { pageBytesOf, pagesIn, payloadBytesOf } from './rules.js'
export {
  agree,
  COMPRESSIONS,
  type Compression,
  defaultTerms,
  type LaneTerms,
  supportedCompressions,
} from './terms.js'
export { negotiate, supportedVersions } from './versions.js'
