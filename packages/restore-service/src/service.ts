import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Logger } from '@pageferry/base'
import { readExitStatus } from '@pageferry/kernel/exit-status'
import {
  createService,
  RestoreRequestSchema,
  SERVICE_PORTS,
  type Service,
  STATE_DIRS,
  type WorkloadExit,
} from '@pageferry/service'

export interface RestoreServiceOptions {
  logger: Logger
  /** Default 127.0.0.1. */
  host?: string
  /** Default 7422; 0: any free port. */
  port?: number
  /** Default /var/lib/pageferry/destination. */
  stateDir?: string
  /** Accept addresses that other machines can reach, without TLS or authentication. */
  insecureListenAnywhere?: boolean
  /** Workers that wait for a migration, loaded and rehearsed. Default 1; 0: none. */
  spareWorkers?: number
}

/**
 * Starts the destination's service. Its workers are programs of their own. So the process that answers the API never
 * loads tracing, the addon or the data lanes.
 * @throws as createService does; nothing is left running then.
 */
export function startRestoreService(options: RestoreServiceOptions): Promise<Service> {
  return createService({
    role: 'destination',
    requestSchema: RestoreRequestSchema,
    workerPath: fileURLToPath(new URL('./restore-worker.js', import.meta.url)),
    host: options.host ?? '127.0.0.1',
    port: options.port ?? SERVICE_PORTS.destination,
    stateDir: options.stateDir ?? STATE_DIRS.destination,
    insecureListenAnywhere: options.insecureListenAnywhere,
    logger: options.logger,
    limits: options.spareWorkers === undefined ? {} : { spareWorkers: options.spareWorkers },
    inUse: keeperLives,
    workloadExit: readExit,
  })
}

/** A keeper outlives its migration: it is the restored workload's parent and writes into the directory. */
function keeperLives(directory: string): boolean {
  return existsSync(join(directory, 'keeper.sock'))
}

/** Treats a damaged file like a missing one: the status of the migration must still be available. */
function readExit(directory: string): WorkloadExit | undefined {
  try {
    return readExitStatus(directory)
  } catch {
    return undefined
  }
}
