// test-group: lab
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { eventually } from '@pageferry/testing/eventually'
import t from 'tap'
import { Lab, takeDown } from '../src/index.js'
import { isAlive, type LabState, listLabs, readState } from '../src/state.js'

const program = fileURLToPath(new URL('../../cli/bin/pageferry.js', import.meta.url))
const labs = fileURLToPath(new URL('../dist/src/index.js', import.meta.url))
const prefix = process.env.PAGEFERRY_LAB_PREFIX ?? 'lab'

/** Longer than a loaded machine needs to start node and take a lab down. */
const patience = { timeoutMs: 20_000, everyMs: 20 }

function isGone(state: LabState): boolean {
  const alive = Object.values(state.hosts).some((host) => isAlive(host.init) || isAlive(host.launcher))
  const cgroups = [...state.cgroups.a, ...state.cgroups.b].some((cgroup) => existsSync(cgroup))
  return !alive && !cgroups && !listLabs().includes(state.name)
}

/** A process that owns a lab with a workload, and says the lab's name. */
async function startOwner(): Promise<{ owner: ChildProcess; name: string }> {
  const source = `
    const { withLab } = await import(${JSON.stringify(labs)})
    await withLab(async (lab) => {
      await lab.a.start(['sleep', '1000'])
      console.log(lab.name)
      await new Promise((resolve) => setTimeout(resolve, 1e6))
    }, { services: false })`
  const owner = spawn(process.execPath, ['--input-type=module', '-e', source], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const [line] = (await once(owner.stdout as NodeJS.ReadableStream, 'data')) as [Buffer]
  return { owner, name: line.toString().trim() }
}

for (const signal of ['SIGKILL', 'SIGTERM', 'SIGINT'] as const) {
  t.test(`a lab does not outlive an owner that ends by ${signal}`, async (t) => {
    const { owner, name } = await startOwner()
    const state = readState(name) as LabState
    t.ok(Object.values(state.hosts).every((host) => isAlive(host.init)))
    owner.kill(signal)
    t.ok(
      await eventually('the end of the lab', () => isGone(state), patience),
      'hosts, cgroups and directory are gone',
    )
  })
}

t.test('an owner killed while the lab comes up leaves nothing either', async (t) => {
  for (const afterMs of [150, 250, 350]) {
    const name = `${prefix}-early-${afterMs}`
    const owner = spawn(process.execPath, [program, 'lab', 'up', name, '--no-services'], { stdio: 'ignore' })
    await sleep(afterMs)
    const finished = owner.exitCode !== null
    owner.kill('SIGKILL')
    if (finished) await takeDown(name)
    t.ok(
      await eventually(`the end of lab ${name}`, () => !listLabs().includes(name), patience),
      `${afterMs} ms`,
    )
  }
})

t.test('lab up, exec, down by command line', async (t) => {
  const name = `${prefix}-cli`
  const attempt = (...args: string[]) => spawnSync(process.execPath, [program, ...args], { encoding: 'utf8' })
  const pageferry = (...args: string[]) => {
    const { status, stdout, stderr } = attempt(...args)
    t.equal(status, 0, stderr || args.join(' '))
    return stdout
  }
  t.teardown(() => takeDown(name))
  t.match(pageferry('lab', 'up', name, '--no-services'), /is up/)
  const state = readState(name) as LabState
  t.ok(
    Object.values(state.hosts).every((host) => isAlive(host.init)),
    'it outlives its maker',
  )
  t.match(pageferry('lab', 'urls', name), `b destination http://10.77.${state.subnet}.2:7422`)
  const pid = Number(pageferry('lab', 'exec', name, 'a', '-d', '--', 'sleep', '1000'))
  t.ok(pid >= 10_000)
  t.not(Lab.open(name).a.outerPid(pid), null)
  t.equal(pageferry('lab', 'exec', name, 'b', '--', 'sh', '-c', 'echo one; echo two >&2'), 'one\ntwo\n')
  t.equal(attempt('lab', 'exec', name, 'b', '--', 'sh', '-c', 'exit 9').status, 9)

  await t.test('Ctrl-C reaches the command', async (t) => {
    const child = spawn(process.execPath, [program, 'lab', 'exec', name, 'a', '--', 'sh', '-c', trap], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    let said = ''
    child.stdout.on('data', (text) => (said += text))
    t.ok(await eventually('the command runs', () => said.includes('waiting'), patience))
    child.kill('SIGINT')
    const [status] = await once(child, 'exit')
    t.equal(status, 42)
  })

  await t.test('a lab whose hosts were killed can be removed, or made again', async (t) => {
    for (const host of Object.values(state.hosts)) process.kill(host.launcher.pid, 'SIGKILL')
    t.ok(
      await eventually(
        'the end of the hosts',
        () => Object.values(state.hosts).every((host) => !isAlive(host.init)),
        patience,
      ),
    )
    t.match(attempt('lab', 'exec', name, 'a', '--', 'true'), { status: 2, stderr: /is not running/ })
    t.match(pageferry('lab', 'up', name, '--no-services'), /is up/)
    const again = readState(name) as LabState
    pageferry('lab', 'down', name)
    pageferry('lab', 'down', name)
    t.ok(isGone(again))
  })
})

const trap = 'trap "echo caught; exit 42" INT; echo waiting; while :; do sleep 0.05; done'
