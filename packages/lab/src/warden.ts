import { type ChildProcess, spawn } from 'node:child_process'
import { pageferryProgram } from './paths.js'

/**
 * Outlives the owner of a lab, even a SIGKILLed one, and takes the lab down then. It is a shell that waits on a pipe
 * whose only writer is the owner: the kernel closes it however the owner ends. A parent-death signal to the hosts would
 * not suffice: it cannot thaw a frozen workload, remove cgroups or reach processes in other sessions.
 */
const wardenScript = `
trap '' HUP INT TERM
read -r word
[ "$word" = done ] || exec "$@"
`

export class Warden {
  readonly #child: ChildProcess

  constructor(name: string) {
    const args = [
      '-c',
      wardenScript,
      'pageferry-lab-warden',
      process.execPath,
      pageferryProgram,
      'lab',
      'down',
      name,
    ]
    this.#child = spawn('sh', args, { cwd: '/', detached: true, stdio: ['pipe', 'ignore', 'ignore'] })
    this.#child.unref()
    this.#child.stdin?.on('error', () => {}) // the warden was killed: ignore it
    ;(this.#child.stdin as unknown as { unref(): void }).unref()
  }

  /** The lab is down: the warden is no longer needed. */
  dismiss(): void {
    this.#child.stdin?.end('done\n')
  }
}
