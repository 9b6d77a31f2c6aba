export { Inbox } from './inbox.js'
/** The part of this package that workers use; loads neither fastify nor the supervisor. */
export * from './ipc.js'
export { Lane, type LaneHandlers, mustBeBinary, webSocketOptions } from './lane.js'
export { collectYoungGarbage } from './quiet-heap.js'
export { StatusReporter, type WorkerStatus } from './status-reporter.js'
export { tokensEqual } from './token.js'
export { runWorker, type WorkerChannel } from './worker-channel.js'
export { type WorkerPhasesOptions, workerPhases } from './worker-phases.js'
