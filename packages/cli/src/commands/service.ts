import { createLogger } from '@pageferry/base'
import {
  closeOnSignal,
  parseListenAddress,
  type Role,
  SERVICE_NAMES,
  SERVICE_PORTS,
} from '@pageferry/service'

interface ServiceOptions {
  listen: string
  stateDir: string
  insecureListenAnywhere?: boolean
  spareWorkers: number
}

/** Runs a service until SIGTERM or SIGINT. */
export async function runService(role: Role, given: ServiceOptions): Promise<void> {
  const { stateDir, insecureListenAnywhere, spareWorkers } = given
  const defaults = { host: '127.0.0.1', port: SERVICE_PORTS[role] }
  const { host, port } = parseListenAddress(given.listen, defaults)
  const options = {
    logger: createLogger(SERVICE_NAMES[role]),
    host,
    port,
    stateDir,
    insecureListenAnywhere,
    spareWorkers,
  }
  const service =
    role === 'source'
      ? await (await import('@pageferry/dump-service')).startDumpService(options)
      : await (await import('@pageferry/restore-service')).startRestoreService(options)
  await closeOnSignal(service)
}
