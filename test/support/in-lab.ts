import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Lab, type LabOptions, withLab } from '@pageferry/lab'
import { baseSeed } from '@pageferry/testing/seeds'
import t, { type Test } from 'tap'

type Tests = (t: Test, lab: Lab) => Promise<void>

/**
 * One lab for all tests of a file: making one takes a second or two. Its services have no spare workers, and its workers
 * do not rehearse. Both make the pause shorter, which no test measures, and cost a second of processor time per migration.
 */
export function inLab(name: string, tests: Tests): Promise<void> {
  return inLabOf({ spareWorkers: 0 }, name, tests)
}

/** As inLab, where processes move from host a to host b only. */
export function inOneWayLab(name: string, tests: Tests): Promise<void> {
  return inLabOf({ spareWorkers: 0, services: 'a-to-b' }, name, tests)
}

/** A lab as its users have it, for tests of what users meet. */
export function inLabWithSpares(services: LabOptions['services'], name: string, tests: Tests): Promise<void> {
  return inLabOf({ services }, name, tests)
}

async function inLabOf(options: LabOptions, name: string, tests: Tests): Promise<void> {
  await t.test(name, { timeout: 0 }, async (t) => {
    t.comment(`PAGEFERRY_SEED=${baseSeed}`)
    await lean(options, (lab) => tests(t, lab))
  })
}

/** A lab in which processes move from host a to host b only. */
export function withOneWayLab(use: (lab: Lab) => Promise<void>, spareWorkers = 0): Promise<void> {
  return lean({ services: 'a-to-b', spareWorkers }, use)
}

/** The services and their workers inherit the environment of this process. */
async function lean(options: LabOptions, use: (lab: Lab) => Promise<void>): Promise<void> {
  if (options.spareWorkers === 0) process.env.PAGEFERRY_REHEARSAL = 'off'
  try {
    await withLab(use, options)
  } finally {
    delete process.env.PAGEFERRY_REHEARSAL
  }
}

/** What the services and their workers wrote last, for a failure. */
function logsOf(lab: Lab, nrLines = 40): string {
  return [lab.a, lab.b]
    .flatMap((host) => ['source', 'destination'].map((role) => join(host.directory, `${role}.log`)))
    .filter((path) => existsSync(path))
    .map(
      (path) => `${path}\n${readFileSync(path, 'utf8').split('\n').slice(-nrLines).map(shorten).join('\n')}`,
    )
    .join('\n')
}

function shorten(line: string): string {
  try {
    const { time, name, msg, level: _level, pid, hostname: _hostname, ...rest } = JSON.parse(line)
    return `${time} ${name} ${pid} ${msg} ${JSON.stringify(rest)}`.slice(0, 400)
  } catch {
    return line.slice(0, 400)
  }
}

/** Runs the body of a test; when it fails, the logs come with it. */
export async function explained(t: Test, lab: Lab, body: () => Promise<void>): Promise<void> {
  try {
    await body()
  } catch (error) {
    t.fail((error as Error).message)
  }
  if (!t.passing()) t.comment(logsOf(lab))
}

/** The lazy phase of a small workload then takes seconds. Both directions share it: host a sends nearly everything. */
export async function slowLink(lab: Lab, mbit: number): Promise<void> {
  const limit = `tc qdisc replace dev eth0 root tbf rate ${mbit}mbit burst 256kb latency 400ms`
  const { status, stderr } = await lab.a.run(['sh', '-c', limit], { cwd: '/' })
  if (status !== 0) throw new Error(`tc: ${stderr}`)
}
