/** The connections of a migration, on both ends. No other part of this package opens sockets. */
export { type Dialled, type DialOptions, dial } from './connect.js'
export { FrameSocket } from './frame-socket.js'
export { Lane, type LaneHandlers, mustBeBinary, webSocketOptions } from './lane.js'
export { LaneServer, type LaneServerOptions } from './listen.js'
export { PageCompressor, PageDecoder } from './page-codec.js'
