import { type ChildProcess, execFileSync, fork } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const program = fileURLToPath(new URL('./fixtures/yielding.ts', import.meta.url))

/** Nice values of all threads of a process (proc_pid_stat(5), field 19), each once. */
function nicenessOf(pid: number): string[] {
  const values = execFileSync('sh', ['-c', `cat /proc/${pid}/task/*/stat`], { encoding: 'utf8' })
    .trim()
    .split('\n')
    .map((line) => line.slice(line.lastIndexOf(')') + 2).split(' ')[16])
  return [...new Set(values)].sort()
}

const autogroupOf = (pid: number): string | undefined => {
  try {
    return / nice (-?\d+)$/m.exec(readFileSync(`/proc/${pid}/autogroup`, 'utf8'))?.[1]
  } catch {
    return undefined
  }
}

async function told(child: ChildProcess, what: string): Promise<void> {
  child.send(what)
  await once(child, 'message')
}

/** @param prefix a command that runs another one, which has what follows as its arguments */
async function started(...prefix: string[]): Promise<ChildProcess> {
  const child = fork(program, {
    detached: true,
    execPath: prefix[0] ?? process.execPath,
    execArgv: [...prefix.slice(1), ...(prefix.length > 0 ? [process.execPath] : []), ...process.execArgv],
  })
  await once(child, 'message')
  return child
}

t.test('a worker yields with all its threads, and they are equal again', async (t) => {
  const child = await started()
  t.teardown(() => child.kill('SIGKILL'))
  const pid = child.pid as number
  const isGrouped = autogroupOf(pid) !== undefined
  t.same(nicenessOf(pid), ['0', '5'])
  for (let turn = 0; turn < 2; turn++) {
    await told(child, 'yield')
    await told(child, 'yield')
    t.same(nicenessOf(pid), ['10', '15'])
    if (isGrouped) t.equal(autogroupOf(pid), '10')
    await told(child, 'equal')
    await told(child, 'equal')
    t.same(nicenessOf(pid), ['0', '5'])
    if (isGrouped) t.equal(autogroupOf(pid), '0')
  }
})

t.test('who could not come back does not yield, and who was made nice stays so', async (t) => {
  const without = await started('setpriv', '--bounding-set', '-sys_nice', '--inh-caps', '-sys_nice')
  const chosen = await started('nice', '-n', '3')
  t.teardown(() => {
    without.kill('SIGKILL')
    chosen.kill('SIGKILL')
  })
  await told(without, 'yield')
  t.same(nicenessOf(without.pid as number), ['0', '5'])
  await told(chosen, 'yield')
  t.same(nicenessOf(chosen.pid as number), ['3', '8'])
})
