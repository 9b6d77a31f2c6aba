import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Lab } from '@pageferry/lab'
import { eventually } from '@pageferry/testing/eventually'
import { childrenOf, commandLine } from '@pageferry/testing/processes'

/** Below each host's pid 1 nothing is left but its services with their spare workers, and no cgroup but the host's own. */
export async function nothingLeft(lab: Lab, allowed: number[] = [], timeoutMs = 20_000): Promise<void> {
  const known = () => {
    const services = [lab.a, lab.b].flatMap((host) =>
      [...host.services.values()].map(({ process }) => process.pid),
    )
    const inits = [lab.state.hosts.a, lab.state.hosts.b].flatMap((host) =>
      host === undefined
        ? []
        : [host.init.pid, host.launcher.pid, ...childrenOf(host.init.pid).filter(isSleep)],
    )
    const spares = services.flatMap(childrenOf).filter((pid) => commandLine(pid).includes('spare'))
    return new Set([...services, ...spares, ...inits, ...allowed])
  }
  const strays = () => {
    const cgroups = Object.values(lab.state.cgroups).flat()
    const found = cgroups.flatMap((directory) => below(directory))
    const pids = new Set(
      cgroups.flatMap((directory) => [directory, ...below(directory)].flatMap(processesIn)),
    )
    const expected = known()
    const processes = [...pids]
      .filter((pid) => !expected.has(pid))
      .map((pid) => `${pid} ${commandLine(pid).join(' ')}`)
    return [...processes.filter((text) => !/^\d+ $/.test(text)), ...found]
  }
  await eventually(
    () => `the end of ${strays().join(', ')}`,
    () => strays().length === 0,
    { timeoutMs, everyMs: 10 },
  )
}

function isSleep(pid: number): boolean {
  return commandLine(pid)[0] === 'sleep'
}

function below(directory: string): string[] {
  if (!existsSync(directory)) return []
  return readdirSync(directory, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .flatMap((entry) => [join(directory, entry.name), ...below(join(directory, entry.name))])
}

function processesIn(directory: string): number[] {
  try {
    return readFileSync(join(directory, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean).map(Number)
  } catch {
    return []
  }
}
