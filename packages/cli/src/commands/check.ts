import { PageferryError } from '@pageferry/base'
import { checkFromInside, preflight, probeHost } from '@pageferry/checkpoint'
import Table from 'cli-table3'
import pc from 'picocolors'

/** `check PID`: everything that prevents the move of a process. `check`: the features of this host's kernel. */
export async function check(pid: number | undefined): Promise<void> {
  if (pid === undefined) await checkHost()
  else await checkProcess(pid)
}

async function checkProcess(pid: number): Promise<void> {
  const { problems, workload } = preflight(pid)
  if (problems.length === 0) problems.push(...(await checkFromInside(pid)))
  const name = `Process ${pid} (${workload.comm}, ${workload.threads} ${workload.threads === 1 ? 'thread' : 'threads'})`
  if (problems.length > 0) {
    throw new PageferryError('REFUSED', `${name} cannot be migrated:`, { details: { problems } })
  }
  process.stdout.write(`${name} can be migrated.\n`)
}

async function checkHost(): Promise<void> {
  const { features } = await probeHost()
  const table = new Table({
    head: ['facility', '', 'without it'],
    wordWrap: true,
    style: { head: [], border: [] },
  })
  for (const { name, present, cost } of features) {
    table.push([name, present ? pc.green('present') : pc.red('missing'), present ? '' : cost])
  }
  process.stdout.write(`${table.toString()}\n`)
}
