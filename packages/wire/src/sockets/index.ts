/** The connections of a migration, on both ends. The only part of this package that opens sockets. */
export { type Dialled, type DialOptions, dial } from './connect.js'
export { FrameSocket } from './frame-socket.js'
export { Lane, type LaneHandlers, mustBeBinary, webSocketOptions } from './lane.js'
export { LaneServer, type LaneServerOptions } from './listen.js'
export { PageCompressor, PageDecoder } from './page-codec.js'
