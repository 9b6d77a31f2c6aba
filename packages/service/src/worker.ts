/** The part of this package that workers use; loads neither fastify nor the supervisor. */
export * from './ipc.js'
export { tokensEqual } from './token.js'
