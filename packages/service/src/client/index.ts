/** The part of this package that clients use; it loads neither fastify nor the supervisor. */
export * from '../api/roles.js'
export * from '../api/schemas.js'
export {
  DEFAULT_SETTINGS,
  MIGRATION_SETTINGS,
  type MigrationSettings,
  MODES,
  parseSettings,
  type Settings,
} from '../api/settings.js'
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
