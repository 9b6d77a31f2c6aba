import { PageferryError } from '@pageferry/base'
import {
  followFile,
  type HostName,
  hostNames,
  Lab,
  labDir,
  passThrough,
  requireLab,
  serviceUrl,
  startInHost,
  superviseInHost,
  takeDown,
} from '@pageferry/lab'
import { ROLES } from '@pageferry/service/client'
import { ExitWith } from '../errors.js'

/** `lab up NAME` */
export async function up(name: string, options: { services: boolean }): Promise<void> {
  const lab = await Lab.up({ name, services: options.services })
  lab.close()
  process.stdout.write(`Lab "${name}" is up: hosts a (${lab.a.address}) and b (${lab.b.address}).\n`)
}

/** `lab urls NAME` */
export function urls(name: string): void {
  const state = requireLab(name)
  for (const host of hostNames) {
    for (const role of ROLES) process.stdout.write(`${host} ${role} ${serviceUrl(state, host, role)}\n`)
  }
}

/** `lab down NAME`: no error when there is none. */
export async function down(name: string): Promise<void> {
  labDir(name)
  await takeDown(name)
}

/** `lab exec NAME a|b`: exit status is the command's. */
export async function exec(
  name: string,
  host: string,
  command: string[],
  options: { detach?: boolean; terminal?: boolean },
): Promise<void> {
  const state = requireLab(name)
  const where = host as HostName
  if (options.detach && options.terminal) {
    throw new PageferryError('BAD_REQUEST', '-d and -t exclude each other.')
  }
  if (options.detach) {
    const { pid } = await startInHost(state, where, command)
    process.stdout.write(`${pid}\n`)
    return
  }
  if (options.terminal) throw new ExitWith(await passThrough(state, where, command))
  const { pid, output, exit } = await superviseInHost(state, where, command)
  // The command has no terminal, so signals that a terminal would send are passed on.
  const passOn = (signal: NodeJS.Signals): void => {
    void startInHost(state, where, ['kill', `-${signal.slice(3)}`, String(pid)], { output: '/dev/null' })
  }
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, passOn)
  await followFile(output, exit, (bytes) => process.stdout.write(bytes))
  throw new ExitWith(await exit)
}
