import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { eventually } from './eventually.js'
import { processDirectory } from './temporary.js'

const directory = processDirectory('processes')
const started = new Set<number>()
let nrStarted = 0

// Processes that a failing test leaves behind end with the test process.
process.on('exit', () => {
  for (const pid of started) kill(pid)
})

/**
 * Starts a command as an orphan. A child of Node could not be traced from here, because libuv reaps its children with
 * waitpid and would take ptrace stops for exits. Its output goes to the returned file.
 */
export function startOrphan(command: string, ...args: string[]): { pid: number; output: string } {
  const output = join(directory, `output-${nrStarted++}`)
  const script = 'out=$1; shift; "$@" >"$out" 2>&1 </dev/null & echo $!'
  const shell = spawnSync('sh', ['-c', script, 'sh', output, command, ...args], { encoding: 'utf8' })
  const pid = Number(shell.stdout)
  if (!(pid > 0)) throw new Error(`cannot start ${command}: ${shell.stderr}`)
  started.add(pid)
  return { pid, output }
}

/** An orphan in a session of its own, and its output. */
export interface Subject {
  pid: number
  output(): string
  /** The output's lines that are JSON, as one object. */
  facts(): Record<string, string | number>
}

/** Starts a command in a session of its own and waits for the first line of its output. */
export async function startSubject(command: string[]): Promise<Subject> {
  const [program, ...args] = command
  const { pid, output } = startOrphan('setsid', program, ...args)
  const read = (): string => readFileSync(output, 'utf8')
  try {
    await eventually(
      `${program} ${args.join(' ')} says something`,
      () => read().includes('\n') || !isAlive(pid),
    )
    if (!isAlive(pid)) throw new Error(`${program} ended: ${read()}`)
  } catch (error) {
    kill(pid)
    throw error
  }
  return {
    pid,
    output: read,
    facts() {
      const facts = {}
      for (const line of read().split('\n')) if (line.startsWith('{')) Object.assign(facts, JSON.parse(line))
      return facts
    },
  }
}

export function kill(pid: number): void {
  started.delete(pid)
  kill9(pid)
}

/** Kills a process at the end of this one even if it was not started here. */
export function adopt(pid: number): void {
  started.add(pid)
}

/** Returns false when there is no such process (any more). */
export function kill9(pid: number | undefined): boolean {
  if (pid === undefined) return false
  try {
    process.kill(pid, 'SIGKILL')
    return true
  } catch {
    return false
  }
}

/** False for a zombie, too. */
export function isAlive(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
  } catch {
    return false
  }
}

export function childrenOf(pid: number): number[] {
  try {
    return readdirSync(`/proc/${pid}/task`).flatMap((tid) =>
      readFileSync(`/proc/${pid}/task/${tid}/children`, 'utf8').split(' ').filter(Boolean).map(Number),
    )
  } catch {
    return []
  }
}

/** Empty for a zombie, and for a process that is gone. */
export function commandLine(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'latin1').split('\0')
  } catch {
    return []
  }
}

/** System call numbers of x86_64. */
export const SYS = { pause: 34, getpid: 39, fork: 57, exit_group: 231 } as const

/** The number of the system call that a thread sleeps in; NaN while it runs. */
export function currentSyscall(pid: number): number {
  return Number.parseInt(readFileSync(`/proc/${pid}/syscall`, 'utf8'), 10)
}
