import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { accessSync, constants, openSync, readSync, statSync } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { PageferryError } from '@pageferry/base'
import { type HostName, hostDir, outputFile } from './paths.js'
import type { HostState, LabState } from './state.js'

export interface StartOptions {
  cwd?: string
  env?: NodeJS.ProcessEnv
  /** User and group id of the process; root otherwise. */
  uid?: number
  /** File for stdout and stderr, opened for appending. The default is named by the pid, see `outputFile`. */
  output?: string
}

export interface StartedProcess {
  /** Pid as the host sees it. */
  pid: number
  output: string
}

export interface RunResult {
  status: number
  stdout: string
  stderr: string
}

/** Joins the host's cgroups, then its namespaces: `lab down` finds everything that ever ran in the lab. */
const enterScript = `
while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 125; shift; done
shift
exec nsenter "$@"
`

/**
 * bash: closes descriptors inherited from the caller. A workload with one end of another process's pipe could not be
 * migrated, and a lab that outlives its caller must not hold them. Other shells cannot name a descriptor above 9.
 */
export const closeInherited = `
for fd in /proc/$BASHPID/fd/*; do
  fd=\${fd##*/}
  if [ "$fd" -gt 2 ]; then eval "exec $fd>&-"; fi
done
`

/**
 * Starts the command as a daemon would be: session of its own, no terminal, output to a regular file. The file is
 * opened here and not by the caller, because its mount must be the host's for the workload to be movable. The pid is
 * known before the command runs, and exec keeps it. No "cmd &": a shell would make it ignore SIGINT.
 */
const startScript = `${closeInherited}
cd "$1" || exit 125
file=$2
[ -n "$file" ] || file=$3/$$.log
shift 3
exec 3>&1 </dev/null >>"$file" 2>&1 || exit 125
echo "$$" >&3
exec 3>&-
exec "$@"
`

/** Command line that enters a host of a lab and runs `command` there, with this process's stdio. */
function enterCommand(state: LabState, host: HostName, command: string[]): string[] {
  const init = (state.hosts[host] as HostState).init.pid
  const cgroups = state.cgroups[host]
  const spaces = [
    '--net',
    '--mount',
    '--uts',
    '--ipc',
    '--pid',
    '--time',
    ...(cgroups.length > 0 ? ['--cgroup'] : []),
  ]
  const nsenter = ['--target', String(init), ...spaces, '--', ...command]
  return ['sh', '-c', enterScript, 'enter', ...cgroups, '--', ...nsenter]
}

function asUser(command: string[], uid: number | undefined): string[] {
  if (uid === undefined) return command
  return ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--', ...command]
}

/** The hosts share this machine's root filesystem, so a missing command is detected before anything is started. */
function requireCommand(command: string[], cwd: string, env: NodeJS.ProcessEnv): void {
  const [program] = command
  if (program === undefined) throw new PageferryError('BAD_REQUEST', 'A command is needed after "--".')
  const candidates = program.includes('/')
    ? [program.startsWith('/') ? program : join(cwd, program)]
    : (env.PATH ?? '/usr/bin:/bin').split(delimiter).map((directory) => join(directory, program))
  const found = candidates.some((path) => {
    try {
      accessSync(path, constants.X_OK)
      return statSync(path).isFile()
    } catch {
      return false
    }
  })
  if (!found) throw new PageferryError('BAD_REQUEST', `There is no command "${program}".`)
}

/** Starts a process in a host, detached from the caller: child of the host's pid 1. */
export async function startInHost(
  state: LabState,
  host: HostName,
  command: string[],
  options: StartOptions = {},
): Promise<StartedProcess> {
  const { child, pid, output } = await launch(state, host, ['setsid', '--fork'], command, options)
  child.unref()
  return { pid, output }
}

/**
 * Stays as the parent. Its child is no group leader, so setsid does not fork, and the status is the command's own. The
 * shell's remark about a killed child must not go to a pipe that is closed by then.
 */
const waitScript = 'exec 4>&2 2>/dev/null; (exec setsid "$@" 2>&4 4>&-); exit $?'

/** Like `startInHost`, but `exit` resolves with the exit status, 128 + N when signal N ended it. */
export async function superviseInHost(
  state: LabState,
  host: HostName,
  command: string[],
  options: StartOptions = {},
): Promise<StartedProcess & { exit: Promise<number> }> {
  const { child, pid, output, exit } = await launch(
    state,
    host,
    ['sh', '-c', waitScript, 'wait'],
    command,
    options,
  )
  child.ref()
  return { pid, output, exit }
}

interface Launch extends StartedProcess {
  child: ChildProcess
  exit: Promise<number>
}

async function launch(
  state: LabState,
  host: HostName,
  session: string[],
  command: string[],
  options: StartOptions,
): Promise<Launch> {
  const cwd = options.cwd ?? process.cwd()
  const env = options.env ?? process.env
  requireCommand(command, cwd, env)
  const outDir = dirname(outputFile(state.name, host, 0))
  const inner = [
    'bash',
    '-c',
    startScript,
    'start',
    cwd,
    options.output ?? '',
    outDir,
    ...asUser(command, options.uid),
  ]
  const [shell, ...args] = enterCommand(state, host, [...session, ...inner]) as [string, ...string[]]
  const child = spawn(shell, args, { cwd: '/', env, stdio: ['ignore', 'pipe', 'pipe'], detached: true })
  const exit = new Promise<number>((resolve) => child.once('exit', (code) => resolve(code ?? 1)))
  let said = ''
  let complaint = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaint += text
  })
  // The pid is the first line. At end of file without it nothing was started.
  for await (const chunk of child.stdout.setEncoding('utf8')) {
    said += chunk
    if (said.includes('\n')) break
  }
  const pid = Number.parseInt(said, 10)
  if (Number.isNaN(pid)) {
    await exit
    throw new PageferryError(
      'KERNEL',
      `Nothing was started in host ${host}: ${complaint.trim() || 'no reason given'}`,
    )
  }
  child.stdout.destroy()
  child.stderr.destroy()
  return { child, pid, output: options.output ?? outputFile(state.name, host, pid), exit }
}

/** Runs a command in a host to its end and captures its output. */
export async function runInHost(
  state: LabState,
  host: HostName,
  command: string[],
  options: Omit<StartOptions, 'output'> = {},
): Promise<RunResult> {
  const cwd = options.cwd ?? process.cwd()
  const inDirectory = [
    'sh',
    '-c',
    'cd "$1" && shift && exec "$@"',
    'run',
    cwd,
    ...asUser(command, options.uid),
  ]
  const [shell, ...args] = enterCommand(state, host, inDirectory) as [string, ...string[]]
  try {
    const { stdout, stderr } = await promisify(execFile)(shell, args, {
      env: options.env,
      maxBuffer: 64 * 1024 * 1024,
    })
    return { status: 0, stdout, stderr }
  } catch (error) {
    const failed = error as { code?: unknown; stdout?: string; stderr?: string }
    if (typeof failed.code !== 'number') throw error
    return { status: failed.code, stdout: failed.stdout ?? '', stderr: failed.stderr ?? '' }
  }
}

/** Runs an interactive command in a host on the caller's terminal. Returns its exit status. */
export async function passThrough(state: LabState, host: HostName, command: string[]): Promise<number> {
  const inDirectory = ['sh', '-c', 'cd "$1" && shift && exec "$@"', 'run', process.cwd(), ...command]
  const [shell, ...args] = enterCommand(state, host, inDirectory) as [string, ...string[]]
  const child = spawn(shell, args, { stdio: 'inherit' })
  const [code] = (await once(child, 'exit')) as [number | null]
  return code ?? 1
}

/** How often a followed output file is read. */
const followMs = 50

/** Passes on new content of a file until `until` settles, and then the rest. */
export async function followFile(
  path: string,
  until: Promise<unknown>,
  write: (bytes: Buffer) => void,
): Promise<void> {
  const file = openSync(path, 'r')
  const buffer = Buffer.alloc(65536)
  const copy = (): void => {
    for (let got = readSync(file, buffer); got > 0; got = readSync(file, buffer)) {
      write(Buffer.from(buffer.subarray(0, got)))
    }
  }
  let done = false
  const finish = (): void => {
    done = true
  }
  until.then(finish, finish)
  while (!done) {
    copy()
    await Promise.race([sleep(followMs), until.catch(() => {})])
  }
  copy()
}

export function hostLog(name: string, host: HostName, service: string): string {
  return join(hostDir(name, host), `${service}.log`)
}
