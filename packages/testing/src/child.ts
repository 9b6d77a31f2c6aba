import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fds, uffd } from '@pageferry/kernel'
import { compileProgram } from './compile.js'

const timeoutMs = 5000

/** The process of child.c: its area, its userfaultfd, and a way to give it commands. */
export class Child {
  readonly pid: number
  readonly area: bigint
  readonly uffd: number
  readonly #sock: number
  readonly #process: ChildProcess
  readonly #dir: string

  constructor(nrPages: number) {
    this.#dir = mkdtempSync(join(tmpdir(), 'pf-child-'))
    const path = join(this.#dir, 'sock')
    const listener = fds.listenUnix(path, fds.SOCK_SEQPACKET)
    this.#process = spawn(
      compileProgram(new URL('../programs/child.c', import.meta.url)),
      [path, String(nrPages)],
      { stdio: 'inherit' },
    )
    this.pid = this.#process.pid as number
    this.#sock = fds.acceptUnix(listener)
    closeSync(listener)
    const { bytes, fds: received } = fds.recv(this.#sock, 8, 1, timeoutMs)
    this.area = new DataView(bytes.buffer).getBigUint64(0, true)
    this.uffd = received[0] as number
  }

  /** Starts an operation of child.c; `answer` waits for its end. */
  start(operation: string, address: bigint, argument = 0n): void {
    const message = new BigUint64Array([BigInt(operation.charCodeAt(0)), address, argument])
    fds.send(this.#sock, new Uint8Array(message.buffer))
  }

  answer(): bigint {
    return this.answerWithin(timeoutMs)
  }

  /** @throws ETIMEDOUT */
  answerWithin(ms: number): bigint {
    return new DataView(fds.recv(this.#sock, 8, 0, ms).bytes.buffer).getBigUint64(0, true)
  }

  /** Like `answer`, for an operation whose own events must be read after the first one. */
  answerWhileReading(): bigint {
    for (const end = Date.now() + timeoutMs; ; ) {
      uffd.readEvents(this.uffd)
      try {
        return this.answerWithin(10)
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ETIMEDOUT' || Date.now() > end) throw error
      }
    }
  }

  call(operation: string, address: bigint, argument = 0n): bigint {
    this.start(operation, address, argument)
    return this.answer()
  }

  async kill(): Promise<void> {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return
    const exit = once(this.#process, 'exit')
    this.#process.kill('SIGKILL')
    await exit
  }

  async end(): Promise<void> {
    await this.kill()
    closeSync(this.uffd)
    closeSync(this.#sock)
    rmSync(this.#dir, { recursive: true })
  }
}
