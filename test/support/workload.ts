import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { type HostName, type Lab, migrateInLab, waitForExit } from '@pageferry/lab'
import type { MigrationReport } from '@pageferry/migration'
import {
  failureOf,
  type MigrationOptions,
  type MigrationResult,
  reportOf,
  type Status,
} from '@pageferry/service/client'
import { baseSeed } from '@pageferry/testing/seeds'
import { problemsOf } from './report-problems.js'

/** Debian's: a version manager's python3 may lie where only root can read. */
const python = existsSync('/usr/bin/python3') ? '/usr/bin/python3' : 'python3'

const workloads = fileURLToPath(new URL('../workloads/', import.meta.url))

/** A workload that says nothing new for so long has hung; a busy test machine needs a good part of it. */
const patienceMs = 30_000
const pollMs = 5

/** Command line of a workload of test/workloads: a C program by its name, a Python one with ".py", a shell script with ".sh". */
function program(name: string): string[] {
  if (name.endsWith('.py')) return [python, join(workloads, 'python', name)]
  if (name.endsWith('.sh')) return ['/bin/bash', join(workloads, 'shell', name)]
  return [join(workloads, 'build', name)]
}

export interface StartOptions {
  uid?: number
  host?: HostName
  seed?: number
  /** Further arguments, after LOG, MARKER and SEED. */
  args?: string[]
  /** Put in front of the program, for example `setpriv --no-new-privs`. */
  wrapper?: string[]
  env?: NodeJS.ProcessEnv
  cwd?: string
}

export interface Migrated {
  result: MigrationResult
  report: MigrationReport
}

/** One self-checking program in a lab, and where it is by now. */
export class Workload {
  readonly lab: Lab
  readonly name: string
  readonly pid: number
  readonly directory: string
  readonly seed: number
  readonly #output: string
  readonly #exitAtHome: Promise<number>
  #endedAtHome: number | null = null
  host: HostName
  /** The migration that brought it to where it is. */
  #migration: string | null = null
  migrations = 0

  private constructor(
    lab: Lab,
    name: string,
    started: { pid: number; output: string; exit: Promise<number> },
    directory: string,
    options: StartOptions,
  ) {
    this.lab = lab
    this.name = name
    this.pid = started.pid
    this.#output = started.output
    this.#exitAtHome = started.exit
    void this.#exitAtHome.then((status) => {
      this.#endedAtHome = status
    })
    this.directory = directory
    this.host = options.host ?? 'a'
    this.seed = options.seed ?? baseSeed
  }

  /** Starts it and waits until it has set itself up. */
  static async start(lab: Lab, name: string, options: StartOptions = {}): Promise<Workload> {
    const directory = mkdtempSync(join(tmpdir(), 'pageferry-e2e-'))
    chmodSync(directory, 0o777)
    const seed = options.seed ?? baseSeed
    const command = [
      ...(options.wrapper ?? []),
      ...program(name),
      join(directory, 'log'),
      join(directory, 'marker'),
      String(seed),
      ...(options.args ?? []),
    ]
    const { uid, env, cwd = directory } = options
    const started = await lab.host(options.host ?? 'a').supervise(command, { uid, env, cwd })
    const workload = new Workload(lab, name, started, directory, options)
    await workload.#until('it to be ready', (lines) => lines.includes('ready'))
    return workload
  }

  /** Whole lines of its log. */
  get lines(): string[] {
    const path = join(this.directory, 'log')
    if (!existsSync(path)) return []
    return readFileSync(path, 'utf8').split('\n').slice(0, -1)
  }

  get #said(): string {
    const output = existsSync(this.#output) ? readFileSync(this.#output, 'utf8').slice(-2000) : ''
    return `seed ${this.seed}, host ${this.host}, log: ${this.lines.slice(-4).join(' | ')}\n${output}`
  }

  async #until(what: string, condition: (lines: string[]) => boolean): Promise<void> {
    let seen = 0
    let deadline = Date.now() + patienceMs
    for (;;) {
      const { lines } = this
      const failed = lines.find((line) => line.startsWith('FAILED'))
      if (failed !== undefined) throw new Error(`${this.name} says ${failed} (${this.#said})`)
      if (condition(lines)) return
      if (lines.length > seen) {
        seen = lines.length
        deadline = Date.now() + patienceMs
      }
      if (this.#migration === null && this.#endedAtHome !== null && this.lines.length === lines.length) {
        throw new Error(`${this.name} has ended with ${this.#endedAtHome} (${this.#said})`)
      }
      if (Date.now() > deadline) throw new Error(`${this.name}: waited in vain for ${what} (${this.#said})`)
      await sleep(pollMs)
    }
  }

  /** Waits until it has gone `count` steps further: it works where it is now. */
  async steps(count: number): Promise<void> {
    const before = this.lines.length
    await this.#until(`${count} further steps`, (lines) => lines.length >= before + count)
  }

  /** Moves it to the other host; every page is compared, unless told otherwise. Does not look at the outcome. */
  async tryMigrate(
    options: MigrationOptions = {},
    onStatus?: (status: Status) => void,
  ): Promise<MigrationResult> {
    const from = this.host
    const result = await migrateInLab(
      this.lab,
      this.pid,
      { from, verify: 'after-resume', ...options },
      { onStatus },
    )
    this.migrations++
    if (result.migrated) {
      this.host = from === 'a' ? 'b' : 'a'
      this.#migration = result.id
    }
    return result
  }

  /**
   * Moves it to the other host, and fails when anything about that is not as it should be. A program that creates
   * threads all the time may come with a thread id that something on the other host has, too: then it runs on here and
   * is moved again.
   */
  async migrate(
    options: MigrationOptions = {},
    onStatus?: (status: Status) => void,
    mayCollide = 3,
  ): Promise<Migrated> {
    const result = await this.tryMigrate(options, onStatus).catch((cause: Error) => {
      throw new Error(`${this.name}: ${cause.message} (${this.#said})`, { cause })
    })
    const report = reportOf(result)
    if (!result.migrated && mayCollide > 0 && /thread id \d+ is taken/.test(failureOf(result).message)) {
      await this.steps(1)
      return this.migrate(options, onStatus, mayCollide - 1)
    }
    if (!result.migrated || report === null) {
      throw new Error(`${this.name} was not migrated: ${failureOf(result).message} (${this.#said})`)
    }
    const problems = problemsOf(report, options.mode ?? 'hybrid', options.verify)
    const [threads, restored] = [result.source, result.destination].map((side) => side?.workload?.threads)
    if (threads !== restored) problems.push(`frozen with ${threads} threads, restored with ${restored}`)
    if (problems.length > 0) {
      throw new Error(`${this.name}: ${problems.join('; ')} (${this.#said}) ${JSON.stringify(report)}`)
    }
    return { result, report }
  }

  /** Lets it check itself for the last time and end; fails unless everything was right. */
  async finish(): Promise<void> {
    this.stop()
    await this.ended(0)
    const steps = this.lines.filter((line) => line.startsWith('step '))
    const wrong = steps.findIndex((line, index) => line !== `step ${index}`)
    if (wrong >= 0)
      throw new Error(`${this.name}: line ${wrong} of its log is "${steps[wrong]}" (${this.#said})`)
    if (this.lines.at(-1) !== 'done') throw new Error(`${this.name} was not done (${this.#said})`)
    this.remove()
  }

  /** Its log and its files; those of one that failed stay, to be looked at. */
  remove(): void {
    rmSync(this.directory, { recursive: true })
  }

  stop(): void {
    writeFileSync(join(this.directory, 'marker'), '')
  }

  /** Waits for its end, and fails unless it exits with `status`. */
  async ended(status: number): Promise<void> {
    const exit = await this.#exit(AbortSignal.timeout(patienceMs))
    if (exit !== status)
      throw new Error(`${this.name} ended with ${exit} instead of ${status} (${this.#said})`)
  }

  async #exit(signal: AbortSignal): Promise<number> {
    if (this.#migration === null) return this.#exitAtHome
    const exit = await waitForExit(this.lab, this.host, this.#migration, signal).catch((error) => {
      throw new Error(`${this.name} does not end: ${(error as Error).message} (${this.#said})`)
    })
    return exit.kind === 'exited' ? (exit.value ?? -1) : 128 + (exit.value ?? 0)
  }
}

/** There, with a verified move in the given mode, and to its end. */
export async function moveOnce(
  lab: Lab,
  name: string,
  options: StartOptions & { migration?: MigrationOptions; stepsBefore?: number; stepsAfter?: number } = {},
): Promise<MigrationReport> {
  const workload = await Workload.start(lab, name, options)
  await workload.steps(options.stepsBefore ?? 3)
  const { report } = await workload.migrate(options.migration)
  await workload.steps(options.stepsAfter ?? 5)
  await workload.finish()
  return report
}
