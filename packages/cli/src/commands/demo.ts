import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { PageferryError, packageRoot } from '@pageferry/base'
import { type Lab, migrateInLab, waitForExit, withLab } from '@pageferry/lab'
import { reportOf } from '@pageferry/service/client'
import pc from 'picocolors'
import { interruptible } from '../interrupt.js'
import { checkLog, type DemoLog } from '../ui/demo-log.js'
import { Progress } from '../ui/progress.js'
import { printReport } from '../ui/report.js'
import { statusOf } from './lab-run.js'
import { conclude } from './migrate.js'

const program = join(packageRoot('cli'), 'assets/demo.py')
const memoryMiB = 256

/** Filling the memory takes about a second. Memory that a virtual machine never used takes longer. */
const fillTimeoutMs = 60_000
/** Log lines before the migration and after it: enough to see that both hosts ran it. */
const runMs = 2_000

/** The program behind `npm start`. */
export async function demo(): Promise<void> {
  await interruptible('Interrupted; the lab and everything in it is gone.', async (signal) => {
    say('Two hosts on this machine, a and b, each with its own network, processes and clock.')
    await withLab((lab) => show(lab, signal), { signal })
  })
}

function say(text: string): void {
  process.stdout.write(`${pc.green('▸')} ${text}\n`)
}

async function show(lab: Lab, signal: AbortSignal): Promise<void> {
  const log = join(lab.a.directory, '..', 'demo.log')
  const { pid, output } = await lab.a.start(['python3', program, log, String(memoryMiB)])
  say(`On host a, a Python program fills ${memoryMiB} MiB and starts to change them: process ${pid}.`)
  await waitForFile(log, signal)
  await sleep(runMs, undefined, { signal })
  say(
    'It moves to host b, while it runs: pages first, then the rest of it, then the pages that it changed meanwhile.',
  )
  const progress = new Progress()
  const result = await migrateInLab(
    lab,
    pid,
    { mode: 'hybrid', verify: 'after-resume' },
    { onStatus: progress.update, signal },
  ).finally(() => progress.stop())
  if (!result.migrated) return conclude(result, undefined, process.stdout)
  await sleep(runMs, undefined, { signal })
  await lab.b.run(['kill', '-TERM', String(pid)])
  const exit = await waitForExit(lab, 'b', result.id, signal)
  const report = reportOf(result)
  if (report !== null) printReport(report, process.stdout)
  const found = checkLog(readFileSync(log, 'utf8'), pid)
  prove(found, pid, readFileSync(output, 'utf8').trim().split('\n').at(-1) ?? '')
  const wrong = report?.verify?.mismatches !== 0 || statusOf(exit) !== 0 || found.problems.length > 0
  if (wrong) {
    const reasons = [
      ...found.problems,
      ...(statusOf(exit) === 0 ? [] : [`it ended with status ${statusOf(exit)}`]),
    ]
    throw new PageferryError('VERIFY_FAILED', `The program did not survive the move: ${reasons.join('; ')}.`)
  }
}

function prove(found: DemoLog, pid: number, lastWord: string): void {
  say('The proof:')
  const rows = [
    `process ${pid} before, process ${pid} after; its own clock went on: ${found.clockS.toFixed(1)} s over the whole log`,
    `log lines 1 to ${found.lines} without a gap, ${found.hosts.map(({ host, lines }) => `${lines} on ${host}`).join(', ')}`,
    `longest pause between two lines ${found.longestPauseMs} ms (${found.usualPauseMs} ms is usual)`,
    `its own last word: ${lastWord}`,
  ]
  for (const row of rows) process.stdout.write(`  ${row}\n`)
}

async function waitForFile(path: string, signal: AbortSignal): Promise<void> {
  const deadline = Date.now() + fillTimeoutMs
  while (!existsSync(path)) {
    if (Date.now() > deadline) throw new PageferryError('TIMEOUT', `The program has not written ${path}.`)
    await sleep(50, undefined, { signal })
  }
}
