import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { PageferryError } from '@pageferry/base'
import { paths } from './paths.js'

/** A process that does nothing, of one user and without capabilities (programs/bystander.c). */
export class Bystander {
  readonly #child: ChildProcess
  readonly pid: number

  private constructor(child: ChildProcess, pid: number) {
    this.#child = child
    this.pid = pid
  }

  /**
   * It runs until `end`, or until this process ends. Takes some milliseconds.
   * @throws NOT_PERMITTED without CAP_SETUID and CAP_SETGID
   */
  static async start(uid: number, gid: number): Promise<Bystander> {
    const args = [String(uid), String(gid)]
    const child = spawn(paths.bystander, args, { stdio: ['ignore', 'pipe', 'ignore'], env: {}, cwd: '/' })
    let said = ''
    child.stdout.on('data', (chunk: Buffer) => {
      said += chunk.toString('latin1')
    })
    await once(child.stdout, 'close')
    if (said !== '' && child.pid !== undefined) {
      child.unref()
      return new Bystander(child, child.pid)
    }
    child.kill('SIGKILL')
    throw new PageferryError(
      'NOT_PERMITTED',
      `no process of user ${uid}, group ${gid} can be started: the service lacks CAP_SETUID or CAP_SETGID`,
    )
  }

  end(): void {
    this.#child.kill('SIGKILL')
  }
}
