import { fileURLToPath } from 'node:url'
import type { Logger } from '@pageferry/base'
import {
  createService,
  DumpRequestSchema,
  parseSettings,
  SERVICE_PORTS,
  type Service,
  STATE_DIRS,
} from '@pageferry/service'

export interface DumpServiceOptions {
  logger: Logger
  /** Default 127.0.0.1. */
  host?: string
  /** Default 7421; 0: any free port. */
  port?: number
  /** Default /var/lib/pageferry/source. */
  stateDir?: string
  /** Accept addresses that other machines can reach, without TLS or authentication. */
  insecureListenAnywhere?: boolean
  /** Workers that wait for a migration, loaded and rehearsed. Default 1; 0: none. */
  spareWorkers?: number
}

/**
 * Starts the source's service. Its workers are programs of their own. So the process that answers the API never loads
 * tracing, the addon or the data lanes.
 * @throws as createService does; nothing is left running then.
 */
export function startDumpService(options: DumpServiceOptions): Promise<Service> {
  return createService({
    role: 'source',
    requestSchema: DumpRequestSchema,
    checkRequest: parseSettings,
    workerPath: fileURLToPath(new URL('./dump-worker.js', import.meta.url)),
    host: options.host ?? '127.0.0.1',
    port: options.port ?? SERVICE_PORTS.source,
    stateDir: options.stateDir ?? STATE_DIRS.source,
    insecureListenAnywhere: options.insecureListenAnywhere,
    logger: options.logger,
    limits: options.spareWorkers === undefined ? {} : { spareWorkers: options.spareWorkers },
  })
}
