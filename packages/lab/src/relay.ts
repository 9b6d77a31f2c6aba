import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { type AddressInfo, createServer, type Server } from 'node:net'
import { networkInterfaces } from 'node:os'
import { join } from 'node:path'
import { PageferryError, packageRoot } from '@pageferry/base'
import { type HostState, isAlive, listLabs, readState } from './state.js'

const workerPath = join(packageRoot('lab'), 'dist/src/relay-worker.js')

/**
 * A lab's addresses exist only inside its own network. A relay makes services in there reachable from here: loopback
 * ports on this side, a child process in the lab's network namespace that connects.
 */
export class Relay {
  readonly #child: ChildProcess
  /** URLs on this side, by the URL in the lab. */
  readonly #forwards = new Map<string, Promise<string>>()

  private constructor(child: ChildProcess) {
    this.#child = child
  }

  static async start(host: HostState): Promise<Relay> {
    const args = [`--net=/proc/${host.init.pid}/ns/net`, process.execPath, workerPath]
    const child = spawn('nsenter', args, {
      stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
      // Ctrl-C goes to the whole foreground group. The caller's requests after it may have to pass through this child.
      detached: true,
    })
    await once(child, 'spawn')
    // Node reports an error when our disconnect meets the end of the child, which also closes the channel. `exit` and
    // `connected` tell all that matters here.
    child.on('error', () => {})
    child.setMaxListeners(0) // every forward that is under way has two
    return new Relay(child)
  }

  /** A URL on this machine's loopback that reaches `url` in the lab: the same one each time. */
  forward(url: string): Promise<string> {
    let forward = this.#forwards.get(url)
    if (forward === undefined) {
      forward = this.#listen(url, this.#forwards.size)
      this.#forwards.set(url, forward)
    }
    return forward
  }

  async #listen(url: string, id: number): Promise<string> {
    const { hostname, port, protocol } = new URL(url)
    const server: Server = createServer()
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const local = (server.address() as AddressInfo).port
    let done: () => void = () => {}
    const answered = new Promise<void>((resolve, reject) => {
      // The handle is lost if its server is closed before the child has it.
      const onMessage = (answer: unknown): void => {
        if (answer === id) resolve()
      }
      const onExit = (): void =>
        reject(
          new PageferryError(
            'PEER_UNREACHABLE',
            `The network of ${url} cannot be entered: is the lab still up?`,
          ),
        )
      this.#child.on('message', onMessage).on('exit', onExit)
      done = () => this.#child.off('message', onMessage).off('exit', onExit)
      if (!this.#child.connected) onExit()
    })
    try {
      if (this.#child.connected) this.#child.send({ id, host: hostname, port: Number(port) }, server)
      await answered
    } finally {
      done()
      server.close() // the child's copy continues to listen
    }
    return `${protocol}//127.0.0.1:${local}`
  }

  close(): void {
    if (this.#child.connected) this.#child.disconnect()
  }
}

/** Makes lab addresses reachable while `work` runs. */
export async function withReach<T>(
  work: (reach: (url: string) => Promise<string>) => Promise<T>,
): Promise<T> {
  const reach = new Reach()
  try {
    return await work((url) => reach.resolve(url))
  } finally {
    reach.close()
  }
}

/** Makes lab addresses reachable. Any other URL is returned unchanged. Call `close` when done. */
export class Reach {
  readonly #relays = new Map<string, Promise<Relay>>()

  async resolve(url: string): Promise<string> {
    const host = labHostOf(url)
    if (host === null) return url
    let relay = this.#relays.get(host.address)
    if (relay === undefined) {
      relay = Relay.start(host)
      this.#relays.set(host.address, relay)
    }
    return (await relay).forward(url)
  }

  close(): void {
    for (const relay of this.#relays.values()) {
      relay.then(
        (started) => started.close(),
        () => {},
      )
    }
    this.#relays.clear()
  }
}

/**
 * The host of a lab on this machine that has the URL's address. null when the address is not a lab's, or when this
 * process runs in that lab itself.
 * @throws PEER_UNREACHABLE for a lab address without a lab: it must not be looked for on another network.
 */
function labHostOf(url: string): HostState | null {
  const { hostname } = new URL(url)
  const [, subnet] = /^10\.77\.(\d+)\.\d+$/.exec(hostname) ?? []
  if (subnet === undefined) return null
  const own = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? [])
  if (own.some(({ address }) => address.startsWith(`10.77.${subnet}.`))) return null
  for (const name of listLabs()) {
    const hosts = Object.values(readState(name)?.hosts ?? {})
    const found = hosts.find((host) => host.address === hostname && isAlive(host.init))
    if (found !== undefined) return found
  }
  throw new PageferryError('PEER_UNREACHABLE', `No lab on this machine has the address ${hostname}.`)
}
