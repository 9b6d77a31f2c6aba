// test-group: lab
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventually } from '@pageferry/testing/eventually'
import t, { type Test } from 'tap'
import { findHierarchies, processesIn } from '../src/cgroups.js'
import { type Lab, Reach, type ServiceCommand, takeDown, withLab } from '../src/index.js'
import { identify, isAlive, type LabState, listLabs } from '../src/state.js'

const bare = { services: false }

/** Nothing of a lab is left on this machine. */
function assertGone(t: Test, state: LabState): void {
  for (const host of Object.values(state.hosts)) t.notOk(isAlive(host.init), 'pid 1 is dead')
  for (const cgroup of [...state.cgroups.a, ...state.cgroups.b])
    t.notOk(existsSync(cgroup), `${cgroup} is removed`)
  t.notOk(listLabs().includes(state.name), 'its directory is removed')
  t.notOk(existsSync(`/run/pageferry/subnets/${state.subnet}`), 'its subnet is free')
}

t.test('two hosts that differ in all that two machines differ in', async (t) => {
  const links = execFileSync('ip', ['-o', 'link'], { encoding: 'utf8' })
  const state = await withLab(async (lab) => {
    const about = async (host: 'a' | 'b') => {
      const script =
        'hostname; cut -d" " -f1 /proc/uptime; readlink /proc/self/ns/net; ls /proc | grep -c "^[0-9]"'
      const { stdout, status } = await lab.host(host).run(['sh', '-c', script])
      t.equal(status, 0)
      return stdout.trim().split('\n')
    }
    const [a, b] = [await about('a'), await about('b')]
    t.equal(a[0], 'pageferry-a')
    t.equal(b[0], 'pageferry-b')
    t.ok(Math.abs(Number(b[1]) - Number(a[1]) - 1_000_000) < 60, 'host b has been up for much longer')
    t.not(a[2], b[2], 'separate networks')
    t.ok(Number(a[3]) < 10, '/proc shows the host and nothing else')
    t.equal(
      execFileSync('ip', ['-o', 'link'], { encoding: 'utf8' }),
      links,
      'the network of this machine is as it was',
    )

    const server = await lab.a.start(['python3', '-c', pingPong, 'listen', lab.a.address])
    t.ok(
      await eventually('the server listens', () => readFileSync(server.output, 'utf8').includes('listening')),
    )
    const pong = await lab.b.run(['python3', '-c', pingPong, 'dial', lab.a.address])
    t.equal(pong.stdout, 'pong\n', 'the hosts reach each other')
    return lab.state
  }, bare)
  assertGone(t, state)
})

const pingPong = `
import socket, sys
what, address = sys.argv[1:]
if what == "listen":
    server = socket.create_server((address, 9000))
    print("listening", flush=True)
    server.accept()[0].sendall(b"pong")
elif what == "dial":
    print(socket.create_connection((address, 9000), 5).recv(10).decode())
`

t.test('processes in a host', async (t) => {
  await withLab(async (lab) => {
    await t.test('get pids that the other host does not give', async (t) => {
      const a = await lab.a.start(['sleep', '60'])
      const b = await lab.b.start(['sleep', '60'])
      t.ok(a.pid >= 10_000 && a.pid < 11_000, `${a.pid}`)
      t.ok(b.pid >= 20_000 && b.pid < 21_000, `${b.pid}`)
      const outer = lab.a.outerPid(a.pid)
      t.ok(outer !== null && identify(outer) !== null, 'found from outside')
      t.equal(lab.b.outerPid(a.pid), null, 'and only in its own host')
      t.equal(readFileSync(`/proc/${outer}/comm`, 'utf8'), 'sleep\n')
    })

    await t.test('run as daemons that could be migrated', async (t) => {
      const script =
        'ps -o ppid=,sid=,tty= -p $$; pwd; id -u; for n in 0 1 2; do readlink /proc/$$/fd/$n; done'
      const cwd = mkdtempSync(join(tmpdir(), 'pageferry-'))
      t.teardown(() => rmSync(cwd, { recursive: true }))
      const { pid, output, exit } = await lab.a.supervise(['sh', '-c', script], { cwd, uid: 1000 })
      t.equal(await exit, 0)
      const [ids, directory, uid, ...fds] = readFileSync(output, 'utf8').trim().split('\n')
      const [, sid, tty] = (ids as string).trim().split(/\s+/)
      t.equal(Number(sid), pid, 'leads its own session')
      t.equal(tty, '?', 'without a terminal')
      t.equal(directory, cwd, "in the caller's directory")
      t.equal(uid, '1000', 'as the user asked for')
      t.same(fds, ['/dev/null', output, output])
      const flags = await lab.a.run(['sh', '-c', 'exec 5>>/dev/null; grep SigIgn /proc/self/status'])
      t.match(flags.stdout, /SigIgn:\s+0000000000000000/, 'no signal is ignored')
    })

    await t.test('are children of pid 1, which reaps them', async (t) => {
      const { pid } = await lab.b.start(['sleep', '600'])
      t.equal((await lab.b.run(['ps', '-o', 'ppid=', '-p', String(pid)])).stdout.trim(), '1')
      await lab.b.run(['kill', '-KILL', String(pid)])
      t.ok(await eventually('the reaping', () => lab.b.outerPid(pid) === null), 'no zombie stays')
    })

    await t.test('tell how they ended', async (t) => {
      t.equal(await (await lab.a.supervise(['sh', '-c', 'exit 7'])).exit, 7)
      t.equal(await (await lab.a.supervise(['sh', '-c', 'kill -9 $$'])).exit, 137)
      t.same(await lab.a.run(['sh', '-c', 'echo out; echo err >&2; exit 3']), {
        status: 3,
        stdout: 'out\n',
        stderr: 'err\n',
      })
    })

    await t.test('that cannot be started are an error', async (t) => {
      await t.rejects(lab.a.start(['no-such-command']), {
        code: 'BAD_REQUEST',
        message: /no command "no-such-command"/,
      })
      await t.rejects(lab.a.start([]), { code: 'BAD_REQUEST' })
      await t.rejects(lab.a.start(['true'], { cwd: '/nonexistent' }), {
        message: /Nothing was started in host a/,
      })
    })
  }, bare)
})

t.test('a lab goes down with everything that runs, is frozen or hides in it', async (t) => {
  let lab: Lab | undefined
  const state = await withLab(async (made) => {
    lab = made
    await made.a.start(['sh', '-c', 'trap "" TERM INT HUP; while :; do sleep 1; done'])
    const { pid } = await made.a.start(['unshare', '--pid', '--fork', 'sleep', '1000'])
    t.ok(pid > 0)
    for (const { version } of findHierarchies()) {
      // The host sees its own cgroup as the root; what it makes there is below the lab's.
      const { pid: frozen } = await made.b.start(['sleep', '1000'])
      const find = `awk '$3 == "cgroup${version === 2 ? '2' : ''}" && ($4 ~ /freezer/ || ${version} == 2) {print $2; exit}' /proc/mounts`
      const script = [
        `root=$(${find})`,
        `mkdir -p $root/pageferry-v${version}/inner && echo ${frozen} > $root/pageferry-v${version}/inner/cgroup.procs`,
        version === 2
          ? `echo 1 > $root/pageferry-v${version}/inner/cgroup.freeze`
          : `echo FROZEN > $root/pageferry-v${version}/inner/freezer.state`,
      ].join(' && ')
      const { status, stderr } = await made.b.run(['sh', '-c', script])
      t.equal(status, 0, stderr)
      const inner = made.state.cgroups.b.find((cgroup) =>
        existsSync(join(cgroup, `pageferry-v${version}/inner`)),
      )
      t.ok(inner, `the cgroup of version ${version} is one of the lab's`)
      t.same(processesIn(join(inner as string, `pageferry-v${version}`)), [made.b.outerPid(frozen)])
    }
    return made.state
  }, bare)
  assertGone(t, state)
  await lab?.down() // a second time: nothing to do
})

t.test('a lab goes down when its user fails or gives up', async (t) => {
  let state: LabState | undefined
  const failing = withLab(async (lab) => {
    state = lab.state
    throw new Error('the test failed')
  }, bare)
  await t.rejects(failing, { message: 'the test failed' })
  assertGone(t, state as LabState)

  const controller = new AbortController()
  const aborted = withLab(
    async (lab) => {
      state = lab.state
      controller.abort(new Error('enough'))
      await sleep(60_000, undefined, { ref: false })
    },
    { ...bare, signal: controller.signal },
  )
  await t.rejects(aborted, { message: 'enough' })
  assertGone(t, state as LabState)
})

t.test('labs do not get into each other', async (t) => {
  await withLab(async (first) => {
    await withLab(async (second) => {
      t.not(first.state.subnet, second.state.subnet)
      await t.rejects(
        withLab(async () => {}, { ...bare, name: first.name }),
        { code: 'CONFLICT' },
      )
    }, bare)
    t.equal((await first.a.run(['true'])).status, 0, 'the first goes on')
  }, bare)
})

t.test('services: started in their hosts, reached from here', async (t) => {
  // Any program that answers /healthz; what it says shows where it runs.
  const serviceCommand: ServiceCommand = (_, host, role) => [
    process.execPath,
    '-e',
    `require('http').createServer((q, s) => s.end(require('os').hostname() + ' ${role}'))
      .listen(${role === 'source' ? 7421 : 7422}, '${host}' === 'a' ? process.argv[1] : process.argv[2])`,
    `10.77.${_.subnet}.1`,
    `10.77.${_.subnet}.2`,
  ]
  await withLab(
    async (lab) => {
      for (const host of [lab.a, lab.b]) {
        for (const role of ['source', 'destination'] as const) {
          const response = await fetch(await host.reach(role))
          t.equal(await response.text(), `pageferry-${host.name} ${role}`)
        }
      }
      const service = lab.a.services.get('source')
      t.ok(service !== undefined && service.pid < 10_000, 'services do not use up the pids of workloads')
      process.kill(service?.process.pid as number, 'SIGKILL')
      await lab.a.startService('source', serviceCommand)
      t.equal((await fetch(await lab.a.reach('source'))).status, 200, 'back again')

      const reach = new Reach()
      t.equal(
        await reach.resolve('http://127.0.0.1:9'),
        'http://127.0.0.1:9',
        'other addresses are left alone',
      )
      reach.close()
    },
    { serviceCommand },
  )
})

t.test('a service that does not start: its own last words, and no lab is left', async (t) => {
  // Other test files make and end labs meanwhile.
  const ownLabs = () => listLabs().filter((name) => name.includes(`-${process.pid}-`))
  t.same(ownLabs(), [])
  const serviceCommand: ServiceCommand = () => ['sh', '-c', 'echo I cannot >&2; exit 1']
  await t.rejects(
    withLab(async () => {}, { serviceCommand }),
    { message: /did not start.*I cannot/s },
  )
  t.same(ownLabs(), [])
})

t.test('down finds a lab that died before it could write anything down', async (t) => {
  const name = `${process.env.PAGEFERRY_LAB_PREFIX ?? 'lab'}-torn`
  mkdirSync(`/run/pageferry/labs/${name}`, { recursive: true })
  mkdirSync('/run/pageferry/subnets', { recursive: true })
  writeFileSync('/run/pageferry/subnets/254', name)
  for (const { mountPoint } of findHierarchies()) mkdirSync(join(mountPoint, `pageferry-lab-${name}-a`))
  await takeDown(name)
  t.notOk(listLabs().includes(name))
  t.notOk(readdirSync('/run/pageferry/subnets').includes('254'))
  for (const { mountPoint } of findHierarchies())
    t.notOk(existsSync(join(mountPoint, `pageferry-lab-${name}-a`)))
})
