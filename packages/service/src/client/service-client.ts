import { setTimeout as sleep } from 'node:timers/promises'
import { isErrorCode, PageferryError, RemoteError } from '@pageferry/base'
import { type Role, SERVICE_NAMES } from '../api/roles.js'
import {
  type CreatedMigration,
  type DumpRequestBody,
  type Health,
  isFinal,
  type RestoreRequest,
  type Status,
} from '../api/schemas.js'
import { EventParser } from './event-stream.js'

/** Longer than a service's own limit for a creation (30 s), so that the user gets its sentence and not ours. */
const requestTimeoutMs = 45_000
/** Three heartbeats: an event stream that is silent for longer has lost its other end. */
const silenceMs = 45_000
/** Pause between attempts to reach a service that went away. */
const retryMs = 250

export interface FollowOptions {
  signal?: AbortSignal
  /** How long a service that answered before may be unreachable, because it is being restarted. Default 30 s. */
  patienceMs?: number
}

/**
 * A service as the command line uses it. Every failure is a PageferryError whose message is a sentence for the user. An
 * error from the service is a RemoteError with its role. An unreachable service is PEER_UNREACHABLE; anything else
 * behind the URL is PROTOCOL.
 */
export class ServiceClient<R extends Role = Role> {
  readonly url: string
  readonly role: R
  readonly #timeoutMs: number

  /** @throws BAD_REQUEST when `url` is not `http://HOST:PORT`. */
  constructor(url: string, role: R, options: { timeoutMs?: number } = {}) {
    const parsed = URL.canParse(url) ? new URL(url) : undefined
    if (
      parsed?.protocol !== 'http:' ||
      parsed.pathname !== '/' ||
      parsed.search !== '' ||
      parsed.hash !== ''
    ) {
      throw new PageferryError(
        'BAD_REQUEST',
        `${url} is not the URL of a ${SERVICE_NAMES[role]}: expected http://HOST:PORT`,
      )
    }
    this.url = parsed.origin
    this.role = role
    this.#timeoutMs = options.timeoutMs ?? requestTimeoutMs
  }

  get #name(): string {
    return SERVICE_NAMES[this.role]
  }

  /** @throws BAD_REQUEST when the service there has the other role. */
  async health(): Promise<Health> {
    const health = await this.#request<Health>('GET', '/healthz')
    if (health.role !== this.role) {
      const actual = SERVICE_NAMES[health.role] ?? 'no pageferry service'
      throw new PageferryError('BAD_REQUEST', `${this.url} is a ${actual}, not a ${this.#name}`)
    }
    return health
  }

  createMigration(
    request: R extends 'source' ? DumpRequestBody : RestoreRequest,
  ): Promise<R extends 'source' ? CreatedMigration : Status> {
    return this.#request('POST', '/v1/migrations', request)
  }

  get(id: string): Promise<Status> {
    return this.#request('GET', `/v1/migrations/${encodeURIComponent(id)}`)
  }

  async list(): Promise<Status[]> {
    return (await this.#request<{ migrations: Status[] }>('GET', '/v1/migrations')).migrations
  }

  cancel(id: string): Promise<Status> {
    return this.#request('DELETE', `/v1/migrations/${encodeURIComponent(id)}`)
  }

  /**
   * Yields the status now and after every change, until a final one. A slow reader gets only the newest. Survives a
   * restart of the service. Ends quietly when `signal` aborts.
   */
  async *followEvents(
    id: string,
    { signal, patienceMs = 30_000 }: FollowOptions = {},
  ): AsyncGenerator<Status, void> {
    let lastContact: number | undefined
    while (!signal?.aborted) {
      try {
        for await (const status of this.#events(id, signal)) {
          yield status
          lastContact = Date.now()
          if (isFinal(status)) return
        }
        throw this.#unreachable({ code: 'ECONNRESET' })
      } catch (error) {
        if (signal?.aborted) return
        const gone = error instanceof PageferryError && error.code === 'PEER_UNREACHABLE'
        const patient = lastContact !== undefined && Date.now() - lastContact < patienceMs
        if (!gone || error instanceof RemoteError || !patient) throw error
        await sleep(retryMs, undefined, { signal }).catch(() => {})
      }
    }
  }

  async *#events(id: string, signal?: AbortSignal): AsyncGenerator<Status, void> {
    const silent = new AbortController()
    const timer = setTimeout(() => silent.abort(new DOMException('silent', 'TimeoutError')), silenceMs)
    const either = signal === undefined ? silent.signal : AbortSignal.any([silent.signal, signal])
    const path = `/v1/migrations/${encodeURIComponent(id)}/events`
    try {
      const response = await this.#fetch(path, { headers: { accept: 'text/event-stream' }, signal: either })
      if (response.status !== 200 || response.body === null) await this.#fail(response)
      const parser = new EventParser()
      const decoder = new TextDecoder()
      for await (const chunk of response.body as AsyncIterable<Uint8Array>) {
        timer.refresh()
        for (const { event, data } of parser.push(decoder.decode(chunk, { stream: true }))) {
          if (event === 'status') yield JSON.parse(data) as Status
        }
      }
    } catch (error) {
      throw this.#translate(error)
    } finally {
      clearTimeout(timer)
    }
  }

  async #request<T>(method: string, path: string, body?: unknown): Promise<T> {
    const response = await this.#fetch(path, {
      method,
      headers: body === undefined ? {} : { 'content-type': 'application/json' },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(this.#timeoutMs),
    })
    if (!response.ok) await this.#fail(response)
    const answer = await this.#json(response)
    if (answer === undefined) throw this.#notOurs(response)
    return answer as T
  }

  async #fetch(path: string, init: RequestInit): Promise<Response> {
    try {
      return await fetch(this.url + path, { redirect: 'error', ...init })
    } catch (error) {
      throw this.#translate(error)
    }
  }

  async #json(response: Response): Promise<object | undefined> {
    let text: string
    try {
      text = await response.text()
    } catch (error) {
      throw this.#translate(error)
    }
    try {
      const value: unknown = JSON.parse(text)
      return typeof value === 'object' && value !== null ? value : undefined
    } catch {
      return undefined
    }
  }

  /** An answer without success: the service's own error, or one from a server that is no pageferry service. */
  async #fail(response: Response): Promise<never> {
    const body = (await this.#json(response)) as
      | { code?: unknown; message?: unknown; details?: unknown }
      | undefined
    if (!isErrorCode(body?.code) || typeof body.message !== 'string') throw this.#notOurs(response)
    const details = (body.details ?? {}) as Record<string, unknown>
    throw new RemoteError(this.role, { code: body.code, message: body.message, details })
  }

  #notOurs(response: Response): PageferryError {
    return new PageferryError(
      'PROTOCOL',
      `${this.url} does not answer like a ${this.#name} (HTTP status ${response.status})`,
      { details: { url: this.url, status: response.status } },
    )
  }

  /** Errors of fetch say "fetch failed"; the reason is in the cause, or in the causes of that. */
  #translate(error: unknown): unknown {
    if (error instanceof PageferryError) return error
    if (error instanceof SyntaxError || error instanceof RangeError) {
      return new PageferryError('PROTOCOL', `${this.url} sent events that are not those of a ${this.#name}`, {
        cause: error,
      })
    }
    if (!(error instanceof Error)) return error
    if (error.name === 'AbortError') return error
    if (error.name === 'TimeoutError') return this.#unreachable({ code: 'ETIMEDOUT' }, error)
    const cause = error.cause as { code?: string; message?: string; errors?: { code?: string }[] } | undefined
    // The Fetch standard blocks some eighty ports, 6000 and 10080 among them.
    if (cause?.message === 'bad port') {
      const sentence = `fetch never connects to the port of ${this.url}: choose another one for the ${this.#name}`
      return new PageferryError('BAD_REQUEST', sentence, { cause: error })
    }
    return this.#unreachable({ code: cause?.code ?? cause?.errors?.[0]?.code }, error)
  }

  #unreachable({ code }: { code?: string }, cause?: unknown): PageferryError {
    const { url } = this
    const sentences: Record<string, string> = {
      ECONNREFUSED: `nothing answers at ${url}: is the ${this.#name} running there?`,
      ENOTFOUND: `the host of ${url} is not known`,
      EAI_AGAIN: `the host of ${url} cannot be looked up at the moment`,
      EHOSTUNREACH: `there is no route to ${url}`,
      ENETUNREACH: `there is no route to ${url}`,
      ETIMEDOUT: `${url} does not answer in time`,
      UND_ERR_CONNECT_TIMEOUT: `${url} does not answer in time`,
      ECONNRESET: `the connection to ${url} broke`,
      UND_ERR_SOCKET: `the connection to ${url} broke`,
      HPE_INVALID_CONSTANT: `what listens at ${url} does not speak HTTP`,
    }
    const sentence = sentences[code ?? ''] ?? `${url} cannot be reached (${code ?? 'no reason given'})`
    return new PageferryError('PEER_UNREACHABLE', sentence, { cause, details: { url, code } })
  }
}
