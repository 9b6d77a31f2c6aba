import { type AddressInfo, isIP } from 'node:net'
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox'
import { type Logger, PageferryError, packageVersion } from '@pageferry/base'
import { fastify, LogController } from 'fastify'
import { type TObject, Type } from 'typebox'
import { type Role, SERVICE_NAMES } from '../api/roles.js'
import { ErrorBodySchema, type Health, IdSchema, type RestoreRequest, StatusSchema } from '../api/schemas.js'
import { defaultsOf } from '../api/settings.js'
import { streamStatus } from './events.js'
import { schemaError, toHttpError } from './http-errors.js'
import { LIMITS, type Limits } from './limits.js'
import { checkListenAddress, isLoopback, serviceUrl } from './listen.js'
import { StateDir } from './state-dir.js'
import { Supervisor, type SupervisorOptions } from './supervisor.js'

export interface ServiceOptions extends Pick<SupervisorOptions, 'inUse' | 'workloadExit'> {
  role: Role
  /** Absolute path of the worker's program, run with fork(). */
  workerPath: string
  stateDir: string
  host: string
  /** 0: any free port. */
  port: number
  logger: Logger
  /** Shape of the body of POST /v1/migrations. Its defaults are filled in before a worker sees the request. */
  requestSchema: TObject
  /**
   * Checks rules that the shape cannot express.
   * @throws BAD_REQUEST
   */
  checkRequest?: (body: Record<string, unknown>) => void
  insecureListenAnywhere?: boolean
  limits?: Partial<Limits>
}

export interface Service {
  readonly role: Role
  readonly host: string
  readonly port: number
  /** http://HOST:PORT */
  readonly url: string
  /** Undoes uncommitted migrations, leaves the others to the next service on the directory, stops listening. */
  close(): Promise<void>
}

const ParamsSchema = Type.Object({ id: IdSchema })
const errors = { '4xx': ErrorBodySchema, '5xx': ErrorBodySchema }

/**
 * Starts a service: locks its state directory, listens, and only then takes over the migrations of earlier services.
 * @throws BAD_REQUEST for an address that must not or cannot be listened on, CONFLICT or NOT_PERMITTED for a state
 * directory that is in use or not writable. Nothing is left running then.
 */
export async function createService(options: ServiceOptions): Promise<Service> {
  const { role, logger, insecureListenAnywhere = false } = options
  const limits: Limits = { ...LIMITS, ...options.limits }
  const host = checkListenAddress(options.host, insecureListenAnywhere)
  const stateDir = new StateDir(options.stateDir, logger)
  try {
    const requestDefaults = defaultsOf(options.requestSchema.properties)
    const supervisor = new Supervisor(stateDir, { ...options, host, limits, requestDefaults })
    const app = createApp(supervisor, options, { role, host, limits, logger })
    const port = await listen(app, role, host, options.port)
    const url = serviceUrl(host, port)
    logger.info({ url, stateDir: stateDir.path }, `${SERVICE_NAMES[role]} is listening`)
    if (insecureListenAnywhere) {
      logger.warn({ url }, 'no TLS, no authentication: any client of this port controls every process here')
    }
    supervisor.adopt()

    let closing: Promise<void> | undefined
    const close = async () => {
      await supervisor.stop()
      await app.close()
      stateDir.unlock()
    }
    return { role, host, port, url, close: () => (closing ??= close()) }
  } catch (error) {
    stateDir.unlock()
    throw error
  }
}

/**
 * Closes the service on SIGTERM and SIGINT. A second signal ends the process at once, which is as safe as any crash:
 * the next service takes over.
 * @returns a promise that is resolved when the service has closed.
 */
export function closeOnSignal(service: Service): Promise<void> {
  return new Promise((resolve, reject) => {
    let asked = false
    const onSignal = () => {
      if (asked) process.exit(1)
      asked = true
      service.close().then(resolve, reject)
    }
    process.on('SIGTERM', onSignal)
    process.on('SIGINT', onSignal)
  })
}

interface AppOptions {
  role: Role
  host: string
  limits: Limits
  logger: Logger
}

function createApp(
  supervisor: Supervisor,
  { requestSchema, checkRequest }: Pick<ServiceOptions, 'requestSchema' | 'checkRequest'>,
  { role, host, limits, logger }: AppOptions,
) {
  const app = fastify({
    loggerInstance: logger,
    // The command line polls, so requests are not logged. The supervisor logs every change of a migration.
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: limits.bodyBytes,
    forceCloseConnections: true,
    ajv: {
      customOptions: {
        removeAdditional: false,
        coerceTypes: false,
        allErrors: true,
        useDefaults: true,
        // This keyword of the settings' schema tells the command line how to offer them; it validates nothing.
        keywords: ['commandLine'],
      },
    },
    schemaErrorFormatter: schemaError,
  }).withTypeProvider<TypeBoxTypeProvider>()

  // A status is sent as the worker gave it, here and in events. The schemas describe; they do not filter.
  app.setSerializerCompiler(() => (data) => JSON.stringify(data))
  app.setErrorHandler((error, request, reply) => {
    const { status, body } = toHttpError(error)
    if (status >= 500) logger.error({ err: error, method: request.method, url: request.url }, body.message)
    return reply.code(status).send(body)
  })
  app.setNotFoundHandler((request, reply) => {
    const message = `${SERVICE_NAMES[role]} has no ${request.method} ${request.url}`
    return reply.code(404).send({ code: 'NOT_FOUND', message, details: {} })
  })
  if (isLoopback(host)) {
    // DNS rebinding: a web page whose name resolves to 127.0.0.1 must not reach a service through the browser.
    app.addHook('onRequest', async (request) => {
      const name = request.hostname.replace(/^\[(.*)\]$/, '$1')
      if (isIP(name) === 0 && name !== 'localhost') {
        throw new PageferryError('BAD_REQUEST', `this service is not called ${name}: use its address`)
      }
    })
  }

  const version = packageVersion('service')
  app.get('/healthz', (): Health => ({ role, version, ok: true }))

  app.post(
    '/v1/migrations',
    { schema: { body: requestSchema, response: { 201: StatusSchema, ...errors } } },
    async (request, reply) => {
      checkRequest?.(request.body as Record<string, unknown>)
      reply.code(201)
      if (role === 'destination') return supervisor.createDestination(request.body as RestoreRequest)
      const clientGone = new AbortController()
      reply.raw.once('close', () => clientGone.abort())
      const created = await supervisor.createSource(request.body as { pid: number }, clientGone.signal)
      return { ...created.status, token: created.token, dataUrl: created.dataUrl }
    },
  )
  app.get(
    '/v1/migrations',
    { schema: { response: { 200: Type.Object({ migrations: Type.Array(StatusSchema) }), ...errors } } },
    () => ({ migrations: supervisor.list() }),
  )
  app.get(
    '/v1/migrations/:id',
    { schema: { params: ParamsSchema, response: { 200: StatusSchema, ...errors } } },
    (request) => supervisor.get(request.params.id),
  )
  app.delete(
    '/v1/migrations/:id',
    { schema: { params: ParamsSchema, response: { 202: StatusSchema, ...errors } } },
    (request, reply) => {
      reply.code(202)
      return supervisor.cancel(request.params.id)
    },
  )

  let eventClients = 0
  app.get('/v1/migrations/:id/events', { schema: { params: ParamsSchema } }, async (request, reply) => {
    const feed = supervisor.feed(request.params.id)
    if (eventClients >= limits.maxEventClients) {
      throw new PageferryError(
        'REFUSED',
        `${eventClients} event streams are open already, which is the limit`,
      )
    }
    eventClients += 1
    reply.hijack()
    void streamStatus(reply.raw, feed, limits).finally(() => (eventClients -= 1))
  })
  return app
}

async function listen(
  app: ReturnType<typeof createApp>,
  role: Role,
  host: string,
  port: number,
): Promise<number> {
  try {
    await app.listen({ host, port })
    return (app.server.address() as AddressInfo).port
  } catch (error) {
    await app.close()
    const { code } = error as NodeJS.ErrnoException
    const why =
      code === 'EADDRINUSE'
        ? 'something listens there already'
        : code === 'EADDRNOTAVAIL'
          ? 'this machine has no such address'
          : (code ?? String(error))
    throw new PageferryError(
      'BAD_REQUEST',
      `${SERVICE_NAMES[role]} cannot listen on ${host}:${port}: ${why}`,
      {
        cause: error,
      },
    )
  }
}
