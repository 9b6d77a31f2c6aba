/** The part of this package that workers use; it loads neither fastify nor the supervisor. */
export { collectYoungGarbage } from './gc.js'
export { type Hold, Holds } from './holds.js'
export { Inbox } from './inbox.js'
export * from './ipc.js'
export { startLaneThread } from './lane-thread.js'
export { StatusReporter, type WorkerStatus } from './status-reporter.js'
export { runWorker, type WorkerChannel, type WorkerProgram } from './worker-channel.js'
export { type WorkerPhasesOptions, workerPhases } from './worker-phases.js'
