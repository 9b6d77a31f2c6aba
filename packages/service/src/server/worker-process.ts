import { type ChildProcess, fork } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ServiceMessage, WorkerMessage } from '../worker/ipc.js'
import { identifyProcess, type ProcessIdentity } from './process-identity.js'

/** After exit(), messages that are still in the channel arrive within one turn of the event loop. */
const drainTimeoutMs = 1_000

/**
 * Flags of V8, for freezes in which each millisecond counts. They give room for the allocations of a freeze: collecting
 * them takes 2 to 3 ms, and the default begins with 1 MiB. They allow a collection before the freeze (worker/gc.ts).
 * Functions are compiled when they are loaded and not when they are first called (0.1 s more at the start). They stay
 * compiled when rounds take long.
 */
const workerFlags = ['--expose-gc', '--min-semi-space-size=8', '--no-lazy', '--no-flush-bytecode']

/** One running worker: a thin wrapper of the child process, with only the parts that the supervisor needs. */
export class WorkerProcess {
  readonly #child: ChildProcess
  /** Undefined when the worker died, or could not be started, before it was looked at. */
  readonly identity: ProcessIdentity | undefined
  /** Resolves with a description when the process is gone *and* every message that it sent was delivered. */
  readonly gone: Promise<string>

  #onMessage: (message: WorkerMessage) => void = () => {}

  /** @param name for ps(1): the migration's id, or a word for a worker without one */
  constructor(path: string, name: string) {
    this.#child = fork(path, [name], {
      serialization: 'json',
      // Standard output would be mixed with the service's. Workers only print logs.
      stdio: ['ignore', 2, 2, 'ipc'],
      // Own session: Ctrl-C in the service's terminal must not kill the worker before it can undo.
      detached: true,
      // Not inherited: two processes cannot share an --inspect port, and loaders are the service's business.
      execArgv: workerFlags,
    })
    const child = this.#child
    this.identity = child.pid === undefined ? undefined : identifyProcess(child.pid)
    child.on('message', (message) => this.#onMessage(message as WorkerMessage))
    const exited = new Promise<string>((resolve) => {
      child.once('exit', (code, signal) =>
        resolve(signal === null ? `exited with ${code}` : `died of ${signal}`),
      )
      // Also emitted when a message could not be sent, which alone does not end the process.
      child.on('error', (error) => {
        if (child.pid === undefined) resolve(`could not be started: ${error.message}`)
      })
    })
    const drained = new Promise<void>((resolve) => child.once('disconnect', resolve))
    this.gone = exited.then(async (how) => {
      const timeout = new AbortController()
      await Promise.race([
        drained,
        sleep(drainTimeoutMs, undefined, { signal: timeout.signal }).catch(() => {}),
      ])
      timeout.abort()
      return how
    })
  }

  /** Directs the worker's messages to this function from now on. */
  listen(onMessage: (message: WorkerMessage) => void): void {
    this.#onMessage = onMessage
  }

  send(message: ServiceMessage): void {
    // `gone` reports a worker that has ended. A failed send needs no other handling.
    if (this.#child.connected) this.#child.send(message, () => {})
  }

  /** Lets the worker exit by itself for `lingerMs`, then dismisses it. */
  async release(lingerMs: number, exitTimeoutMs: number): Promise<void> {
    const timer = setTimeout(() => void this.dismiss(exitTimeoutMs), lingerMs)
    await this.gone
    clearTimeout(timer)
  }

  /** Closes the channel, which tells the worker to exit; kills it if it does not within `timeoutMs`. */
  async dismiss(timeoutMs: number): Promise<void> {
    if (this.#child.connected) this.#child.disconnect()
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), timeoutMs)
    await this.gone
    clearTimeout(timer)
  }
}
