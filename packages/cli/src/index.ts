export * from './lab/index.js'
export {
  failureOf,
  type MigrationOptions,
  type MigrationRequest,
  type MigrationResult,
  migrate,
  type Sides,
  whereabouts,
} from './migrate.js'
export { reportOf } from './ui/report.js'
