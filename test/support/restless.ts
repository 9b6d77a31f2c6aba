import {
  chmodSync,
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type HostName, type Lab, waitForExit } from '@pageferry/lab'
import { compileProgram } from '@pageferry/testing/compile'
import { eventually } from '@pageferry/testing/eventually'

/** A migration needs the processors as well. */
const everyMs = 10

function program(): string {
  const flags = ['-O2', '-Wall', '-Wextra', '-Werror', '-pthread']
  return compileProgram(new URL('restless.c', import.meta.url), flags)
}

/** One restless process, and what is asked of it from outside. */
export class Restless {
  readonly lab: Lab
  readonly directory: string
  readonly pid: number

  private constructor(lab: Lab, directory: string, pid: number) {
    this.lab = lab
    this.directory = directory
    this.pid = pid
  }

  static async start(
    lab: Lab,
    options: { mib: number; kind: 'calm' | 'wild'; uid?: number },
  ): Promise<Restless> {
    const directory = mkdtempSync(join(tmpdir(), 'pageferry-restless-'))
    chmodSync(directory, 0o777)
    const { mib, kind, uid } = options
    const command = [program(), join(directory, 'log'), join(directory, 'marker'), '1', String(mib), kind]
    const { pid } = await lab.a.start(command, { uid, cwd: directory })
    const workload = new Restless(lab, directory, pid)
    await eventually('the workload to be ready', () => workload.lines.includes('ready'), {
      timeoutMs: 30_000,
      everyMs,
    })
    return workload
  }

  get lines(): string[] {
    const path = join(this.directory, 'log')
    return existsSync(path) ? readFileSync(path, 'utf8').split('\n').slice(0, -1) : []
  }

  get complaint(): string | undefined {
    return this.lines.find((line) => line.startsWith('FAILED'))
  }

  /** Its counter goes on, and it has found nothing wrong. */
  async runs(): Promise<void> {
    const before = this.lines.length
    await eventually(
      () => `the workload to go on: ${this.complaint ?? this.lines.at(-1)}`,
      () => this.complaint !== undefined || this.lines.length > before + 2,
      { timeoutMs: 20_000, everyMs },
    )
    if (this.complaint !== undefined) throw new Error(`the workload says: ${this.complaint}`)
  }

  fork(on: boolean): void {
    const path = join(this.directory, 'marker.fork')
    if (on) writeFileSync(path, '')
    else rmSync(path, { force: true })
  }

  /** Tells it to check everything and to end; it may still be on its way then. */
  conclude(): void {
    this.fork(false)
    writeFileSync(join(this.directory, 'marker'), '')
  }

  /** After `conclude` where nothing waits for it: on the host where it was started. */
  async endedWell(): Promise<void> {
    await eventually(
      () => `"ok" of the workload: ${this.complaint ?? this.lines.at(-1)}`,
      () => this.complaint !== undefined || this.lines.at(-1) === 'ok',
      { timeoutMs: 60_000, everyMs },
    )
    if (this.complaint !== undefined) throw new Error(`the workload says: ${this.complaint}`)
  }

  remove(): void {
    rmSync(this.directory, { recursive: true, force: true })
  }

  /** Everything that a migration might leave on a process, in a form that can be compared. */
  traces(host: HostName = 'a'): Record<string, unknown> {
    const pid = this.lab.host(host).outerPid(this.pid)
    if (pid === null) throw new Error(`there is no process ${this.pid} on host ${host}`)
    const status = readFileSync(`/proc/${pid}/status`, 'utf8')
    const field = (name: string) => new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(status)?.[1]
    const masks = readdirSync(`/proc/${pid}/task`).map((tid) => {
      const thread = readFileSync(`/proc/${pid}/task/${tid}/status`, 'utf8')
      return `${/^SigBlk:\s*(.*)$/m.exec(thread)?.[1]} ${/^TracerPid:\s*(.*)$/m.exec(thread)?.[1]}`
    })
    return {
      tracer: field('TracerPid'),
      threads: field('Threads'),
      masks,
      cgroup: readFileSync(`/proc/${pid}/cgroup`, 'utf8'),
      maps: readFileSync(`/proc/${pid}/maps`, 'utf8'),
      flags: (readFileSync(`/proc/${pid}/smaps`, 'utf8').match(/ u[wmi]( |$)/gm) ?? []).length,
      fds: readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`)),
      vdsoEnd: vdsoPadding(pid),
    }
  }
}

/** The bytes behind the vdso, where injected code lies while there is any. */
function vdsoPadding(pid: number): string {
  const line = readFileSync(`/proc/${pid}/maps`, 'utf8')
    .split('\n')
    .find((each) => each.endsWith('[vdso]'))
  const end = Number.parseInt(/-([0-9a-f]+) /.exec(line ?? '')?.[1] ?? '0', 16)
  const bytes = Buffer.alloc(288)
  const memory = openSync(`/proc/${pid}/mem`, 'r')
  readSync(memory, bytes, 0, bytes.length, end - bytes.length)
  closeSync(memory)
  return bytes.toString('hex')
}

/** It came to host b and exited there with status 0. */
export async function endsWellOn(lab: Lab, workload: Restless, id: string): Promise<void> {
  workload.conclude()
  const exit = await Promise.race([
    waitForExit(lab, 'b', id),
    sleep(60_000, undefined, { ref: false }).then(() => {
      throw new Error(`the workload does not end: ${workload.lines.at(-1)}`)
    }),
  ])
  if (exit.kind !== 'exited' || exit.value !== 0 || workload.lines.at(-1) !== 'ok') {
    throw new Error(
      `the workload ended with ${JSON.stringify(exit)}: ${workload.complaint ?? workload.lines.at(-1)}`,
    )
  }
}

/** The counter of the log has no gap: one process wrote it, in one go. */
export function hasNoGap(workload: Restless): boolean {
  const numbers = workload.lines.filter((line) => /^\d+$/.test(line)).map(Number)
  return numbers.every((number, i) => number === i + 1)
}
