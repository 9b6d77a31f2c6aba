// Wrong usage, as a newcomer tries it: each time one clear sentence and the right exit status.

import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { failureOf } from '@pageferry/service/client'
import t, { type Test } from 'tap'
import { inLabWithSpares } from '../support/in-lab.js'
import { Workload } from '../support/workload.js'

const pageferry = fileURLToPath(new URL('../../packages/cli/bin/pageferry.js', import.meta.url))

/** Traces a process until its standard input ends: PTRACE_SEIZE. */
const traceScript = `
import ctypes, sys
ptrace = ctypes.CDLL(None).ptrace
ptrace.argtypes = [ctypes.c_long] * 4
assert ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0
print("traced", flush=True)
sys.stdin.read()
`

interface Ran {
  status: number | null
  stdout: string
  stderr: string
}

function run(args: string[], wrapper: string[] = []): Promise<Ran> {
  const [command, ...rest] = [...wrapper, process.execPath, pageferry, ...args] as [string, ...string[]]
  const child = spawn(command, rest, { stdio: ['ignore', 'pipe', 'pipe'] })
  const said = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', (text: string) => {
      said[name] += text
    })
  }
  return new Promise((resolve) => child.once('close', (status) => resolve({ status, ...said })))
}

function assertSentence(t: Test, { status, stdout, stderr }: Ran, expected: number, sentence: RegExp): void {
  t.equal(status, expected, `exit status ${expected}: ${stderr.trim().slice(0, 200)}`)
  t.match(stdout + stderr, sentence)
  t.notMatch(stderr, /^ {4}at /m, 'no stack')
}

t.test('the command line', async (t) => {
  assertSentence(t, await run(['lab', 'run', '--colour', '--', 'true']), 2, /unknown option '--colour'/)
  assertSentence(t, await run(['fly']), 2, /unknown command 'fly'/)
  assertSentence(t, await run(['migrate', '--pid', '1']), 2, /required option '--source/)
  assertSentence(
    t,
    await run(['lab', 'run', '--mode', 'fast', '--', 'true']),
    2,
    /Allowed choices are hybrid/,
  )
  assertSentence(t, await run(['lab', 'run']), 2, /A command is needed/)
  assertSentence(t, await run(['lab', 'run', '--', 'no-such-command']), 2, /no command "no-such-command"/)
  assertSentence(t, await run(['check', 'abc']), 2, /whole number/)
  assertSentence(t, await run(['check', '4194300']), 3, /no process 4194300/)
  if (existsSync('/proc/2/comm') && readFileSync('/proc/2/comm', 'utf8') === 'kthreadd\n') {
    assertSentence(t, await run(['check', '2']), 3, /kernel thread/)
  }
  const nowhere = [
    '--source',
    'http://127.0.0.1:7419',
    '--destination',
    'http://127.0.0.1:7419',
    '--pid',
    '1',
  ]
  assertSentence(t, await run(['migrate', ...nowhere]), 4, /nothing answers at http:\/\/127.0.0.1:7419/)
  const malformed = ['--source', 'localhost', '--destination', 'http://127.0.0.1:7419', '--pid', '1']
  assertSentence(t, await run(['migrate', ...malformed]), 2, /localhost is not the URL/)
})

t.test('no root', async (t) => {
  const nobody = ['setpriv', '--reuid=1000', '--regid=1000', '--clear-groups', '--']
  const readable = (await run(['--version'], nobody)).status === 0
  if (!readable) {
    t.comment('this directory is not readable for others: nothing to try')
    t.pass('skipped')
    return
  }
  assertSentence(t, await run(['lab', 'run', '--', 'true'], nobody), 3, /only root/)
  assertSentence(t, await run(['check', '1'], nobody), 3, /root/)
})

await inLabWithSpares(true, 'what a service refuses', async (t, lab) => {
  const sides = (pid: number) => [
    '--source',
    lab.a.url('source'),
    '--destination',
    lab.b.url('destination'),
    '--pid',
    String(pid),
  ]

  await t.test('no such process', async (t) => {
    assertSentence(t, await run(['migrate', ...sides(9_999)]), 3, /no process 9999/)
  })

  await t.test('a traced process, and the same one afterwards', async (t) => {
    const workload = await Workload.start(lab, 'files', { uid: 1000 })
    // A tracer that holds on until its standard input ends.
    const tracer = spawn('python3', ['-c', traceScript, String(lab.a.outerPid(workload.pid))], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    await new Promise((resolve) => tracer.stdout.once('data', resolve))
    assertSentence(t, await run(['migrate', ...sides(workload.pid)]), 3, /traced/)
    tracer.stdin.end()
    await new Promise((resolve) => tracer.once('close', resolve))
    await workload.migrate()
    await workload.finish()
  })

  await t.test('a child in the family, and a descriptor that cannot be moved: both at once', async (t) => {
    const { pid } = await lab.a.start(['sh', '-c', 'sleep 30 | cat'])
    const { status, stderr } = await run(['migrate', ...sides(pid)])
    t.equal(status, 3)
    t.match(stderr, /child process/)
    await lab.a.run(['sh', '-c', `kill -9 -${pid}`])
  })

  await t.test('a file that the destination does not have', async (t) => {
    const directory = mkdtempSync(join(tmpdir(), 'pageferry-missing-'))
    t.teardown(() => rmSync(directory, { recursive: true }))
    writeFileSync(join(directory, 'data'), 'x'.repeat(8192))
    // On host b something else lies over that directory.
    t.equal((await lab.b.run(['mount', '-t', 'tmpfs', 'none', directory])).status, 0)
    const script = `
import mmap, sys, time
data = open(sys.argv[1] + "/data", "r+b")
held = mmap.mmap(data.fileno(), 0, access=mmap.ACCESS_READ)
while True: time.sleep(0.01)
`
    const { pid } = await lab.a.start(['/usr/bin/python3', '-c', script, directory])
    await sleep(300)
    assertSentence(t, await run(['migrate', ...sides(pid)]), 3, /\/data: the destination has no such file/)
    const { stdout } = await lab.a.run(['ps', '-o', 'stat=', '-p', String(pid)])
    t.match(stdout, /^[RS]/, 'it runs on the source as before')
    await lab.a.run(['kill', '-9', String(pid)])
    await lab.b.run(['umount', directory])
  })

  await t.test('a destination that is down, and then is not', async (t) => {
    const workload = await Workload.start(lab, 'files')
    const service = lab.b.services.get('destination')
    process.kill(service?.process.pid as number, 'SIGKILL')
    assertSentence(
      t,
      await run(['migrate', ...sides(workload.pid)]),
      4,
      /nothing answers at .*restore-service|nothing answers/,
    )
    await workload.steps(3)
    await lab.b.startService('destination')
    await workload.migrate()
    await workload.steps(3)
    await workload.finish()
  })

  await t.test('a pid that is taken on the destination', async (t) => {
    const workload = await Workload.start(lab, 'files')
    // Makes host b hand out that very pid next.
    const script = `echo ${workload.pid - 1} > /proc/sys/kernel/ns_last_pid; sleep 30 & wait`
    const taken = await lab.b.start(['sh', '-c', script])
    await sleep(200)
    const result = await workload.tryMigrate()
    if (result.migrated) t.fail('two processes cannot have one pid')
    else t.match(failureOf(result).message, /pid \d+ is taken/)
    await lab.b.run(['sh', '-c', `kill -9 -${taken.pid}`])
    await workload.steps(3)
    await workload.finish()
  })
})
