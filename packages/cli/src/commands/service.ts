import { createLogger } from '@pageferry/base'
import { closeOnSignal, parseListenAddress } from '@pageferry/service'

interface ServiceOptions {
  listen: string
  stateDir: string
  insecureListenAnywhere?: boolean
  spareWorkers: number
}

/** Runs a service until SIGTERM or SIGINT. */
export async function runService(
  name: 'dump-service' | 'restore-service',
  given: ServiceOptions,
): Promise<void> {
  const { stateDir, insecureListenAnywhere, spareWorkers } = given
  const defaults = { host: '127.0.0.1', port: name === 'dump-service' ? 7421 : 7422 }
  const { host, port } = parseListenAddress(given.listen, defaults)
  const options = { logger: createLogger(name), host, port, stateDir, insecureListenAnywhere, spareWorkers }
  const service =
    name === 'dump-service'
      ? await (await import('@pageferry/dump-service')).startDumpService(options)
      : await (await import('@pageferry/restore-service')).startRestoreService(options)
  await closeOnSignal(service)
}
