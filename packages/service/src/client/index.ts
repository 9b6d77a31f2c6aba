/** The part of this package that clients use; loads neither fastify nor the supervisor. */
export * from '../api/schemas.js'
export {
  type MigrateHooks,
  type MigrationOptions,
  type MigrationRequest,
  type MigrationResult,
  migrate,
  type Sides,
} from './migrate.js'
export { failureOf, reportOf, whereabouts } from './outcome.js'
export { type FollowOptions, ServiceClient } from './service-client.js'
