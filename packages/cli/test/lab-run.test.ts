// test-group: lab
// test-timeout-s: 300
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { isAlive, type LabState, readState } from '@pageferry/lab'
import t from 'tap'

const program = fileURLToPath(new URL('../bin/pageferry.js', import.meta.url))
const prefix = process.env.PAGEFERRY_LAB_PREFIX ?? 'lab'
const directory = mkdtempSync(join(tmpdir(), 'pageferry-'))
t.teardown(() => rmSync(directory, { recursive: true }))

function labRun(...args: string[]) {
  return spawnSync(process.execPath, [program, 'lab', 'run', ...args], { encoding: 'utf8', timeout: 90_000 })
}

const workload = `
import os, sys, time
memory = bytearray(os.urandom(1 << 20)) * 64
before = os.uname().nodename
until = time.monotonic() + 60
n = 0
while os.uname().nodename == before and time.monotonic() < until:
    n += 1
    memory[n * 40960 % len(memory)] = n % 256
    time.sleep(0.01)
print(os.getpid(), before, os.uname().nodename, flush=True)
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[1]))
`

t.test("the exit status and the output are the command's", async (t) => {
  const report = join(directory, 'report.json')
  const args = ['--verify', '--settle', '300', '--report', report, '--', 'python3', '-c', workload, '7', '3']
  const { status, stdout, stderr } = labRun(...args)
  t.equal(status, 7, stderr)
  t.match(stdout, /^\d{5} pageferry-a pageferry-b\n$/, 'one process, on both hosts')
  t.match(stderr, /round 1: [\d,]+ pages/)
  t.match(stderr, /runs on the destination\.\nWaiting for python3 to end\./)
  const written = JSON.parse(readFileSync(report, 'utf8'))
  t.match(written, { mode: 'hybrid', outcome: 'migrated', verify: { mismatches: 0 } })
  t.equal(written.workload.pid, Number.parseInt(stdout, 10))
  t.ok(written.verify.pages > 16_000)
})

t.test('a command that ends as soon as it is there', async (t) => {
  const { status, stderr } = labRun('--verify', '--settle', '300', '--', 'python3', '-c', workload, '9', '0')
  t.equal(status, 9, stderr)
  t.match(
    stderr,
    /runs on the destination\.\nWaiting|came to the destination and exited with status 9 there\.\n$/,
  )
})

t.test('what cannot be migrated: 3, and why', async (t) => {
  const { status, stderr } = labRun('--settle', '300', '--', 'sh', '-c', 'sleep 50 | cat')
  t.equal(status, 3, stderr)
  t.match(stderr, /cannot be moved: child processes/)
})

t.test('what ends too early: 4, and its output all the same', async (t) => {
  const { status, stdout, stderr } = labRun('--settle', '300', '--', 'sh', '-c', 'echo done; exit 5')
  t.equal(status, 4)
  t.match(stderr, /sh ended within 300 ms, before it could be migrated/)
  t.equal(stdout, 'done\n')
})

/** Moments after the start of the workload: settling, in the rounds, around the freeze, after it. */
const momentsMs = [100, 700, 1200]

for (const [signal, wanted] of [
  ['SIGINT', 130],
  ['SIGKILL', null],
] as const) {
  t.test(`${signal} at any moment leaves nothing behind`, async (t) => {
    for (const momentMs of momentsMs) {
      const name = `${prefix}-${signal}-${momentMs}`
      const args = [
        'lab',
        'run',
        '--new-lab',
        name,
        '--settle',
        '300',
        '--',
        'python3',
        '-c',
        workload,
        '0',
        '0',
      ]
      const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'ignore', 'pipe'] })
      const exit = once(child, 'exit')
      let said = ''
      child.stderr.on('data', (text) => (said += text))
      while (!said.includes('runs on host a') && child.exitCode === null) await sleep(10)
      const state = readState(name) as LabState
      await sleep(momentMs)
      child.kill(signal)
      const [status] = await exit
      // A fast machine may have been done already.
      if (status !== 0) t.equal(status, wanted, said)
      const cgroups = [...state.cgroups.a, ...state.cgroups.b]
      const isGone = () =>
        readState(name) === null &&
        !cgroups.some((cgroup) => existsSync(cgroup)) &&
        !Object.values(state.hosts).some((host) => isAlive(host.init))
      // After Ctrl-C it is gone when the command returns; a killed one is cleaned up after by its warden.
      if (signal === 'SIGKILL') for (let i = 0; i < 1000 && !isGone(); i++) await sleep(20)
      t.ok(isGone(), `${momentMs} ms`)
    }
  })
}
