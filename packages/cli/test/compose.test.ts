import { existsSync, readFileSync } from 'node:fs'
import { BlockList } from 'node:net'
import { hostAddress } from '@pageferry/lab'
import { checkListenAddress, labNetwork, parseListenAddress, SERVICE_PORTS } from '@pageferry/service'
import t from 'tap'
import { parse } from 'yaml'

/** What can be checked of docker-compose.yml and deploy/ without an engine and without systemd. */

interface ComposeService {
  image: string
  build: { context: string; dockerfile: string }
  command: string[]
  networks: Record<string, { ipv4_address: string }>
  cap_drop: string[]
  cap_add: string[]
  environment: { PAGEFERRY_FIRST_PID: number }
  privileged?: boolean
  ports?: string[]
}

interface Compose {
  services: Record<string, ComposeService>
  networks: Record<string, { internal: boolean; ipam: { config: { subnet: string }[] } }>
}

const root = new URL('../../../', import.meta.url)
const text = (path: string): string => readFileSync(new URL(path, root), 'utf8')
const compose: Compose = parse(text('docker-compose.yml'), { merge: true })
const readme = text('deploy/README.md')
const roles = { source: 'dump-service', destination: 'restore-service' } as const

/** The table of deploy/README.md: capability to the services that have it. */
const documented = [...readme.matchAll(/^\| `([A-Z_]+)` \| ([a-z, ]+) \|/gm)].map(
  ([, capability, services]) => ({
    capability,
    services: services.split(', '),
  }),
)

t.test('two services, each with the address that it listens on', async (t) => {
  t.same(Object.keys(compose.services), Object.keys(roles))
  const { internal, ipam } = compose.networks.migration
  t.equal(internal, true, 'no way in from other machines while there is no TLS')
  const [address, bits] = ipam.config[0].subnet.split('/')
  const subnet = new BlockList()
  subnet.addSubnet(address, Number(bits), 'ipv4')
  for (const [name, role] of Object.entries(roles)) {
    const service = compose.services[name]
    const [command, option, listen] = service.command
    t.same([command, option], [role, '--listen'])
    const { host, port } = parseListenAddress(listen, { host: '', port: 0 })
    t.equal(port, SERVICE_PORTS[name as keyof typeof roles])
    t.equal(host, service.networks.migration.ipv4_address)
    t.equal(checkListenAddress(host), host, 'without --insecure-listen-anywhere')
    t.ok(subnet.check(host), `${host} is in ${address}/${bits}`)
    t.match(readme, `${host}:${port}`)
    t.equal(service.ports, undefined, 'nothing is published')
  }
})

t.test("the subnet is the policy's, and none that a lab takes", async (t) => {
  const [subnet] = compose.networks.migration.ipam.config
  t.ok(subnet.subnet.startsWith(labNetwork.split('.').slice(0, 2).join('.')))
  const labs = Array.from({ length: 254 }, (_, i) => hostAddress(i + 1, 'a').replace(/\d+$/, '0/24'))
  t.notOk(labs.includes(subnet.subnet))
})

t.test('the capabilities are the documented ones', async (t) => {
  t.ok(documented.length > 0)
  for (const [name, service] of Object.entries(compose.services)) {
    t.equal(service.privileged, undefined)
    t.same(service.cap_drop, ['ALL'])
    const wanted = documented.filter(({ services }) => services.includes(name)).map((row) => row.capability)
    t.same([...service.cap_add].sort(), wanted.sort(), name)
  }
  const { source, destination } = compose.services
  const missing = source.cap_add.filter((capability) => !destination.cap_add.includes(capability))
  t.same(missing, [], "root's processes take theirs along")
})

t.test('the hosts do not hand out the same pids', async (t) => {
  const { source, destination } = compose.services
  const first = [source, destination].map(({ environment }) => environment.PAGEFERRY_FIRST_PID)
  t.ok(Math.abs(first[0] - first[1]) >= 10_000)
  t.ok(Math.max(...first) < 32_768, 'the smallest pid_max')
})

t.test('what the files refer to exists', async (t) => {
  for (const { build } of Object.values(compose.services)) {
    t.ok(existsSync(new URL(build.dockerfile, root)))
  }
  const dockerfile = text('deploy/Dockerfile')
  for (const [, path] of dockerfile.matchAll(/\/opt\/pageferry\/((?:deploy|packages\/cli\/bin)\/[\w.-]+)/g)) {
    t.ok(existsSync(new URL(path, root)), path)
  }
  t.match(text('deploy/entrypoint.sh'), /^#!\/bin\/sh\n/)
  t.match(readme, 'packages/cli/assets/demo.py')
})

t.test('the units', async (t) => {
  for (const [name, role] of Object.entries(roles)) {
    const unit = text(`deploy/pageferry-${role.replace('-service', '')}.service`)
    t.match(unit, `ExecStart=/usr/local/bin/pageferry ${role} --state-dir /run/pageferry/${name} `)
    t.match(unit, `RuntimeDirectory=pageferry/${name}\n`)
    t.match(unit, 'KillMode=process\n', 'keepers and workloads outlive the service')
    t.notMatch(unit, /^(Protect|Private|SystemCall|NoNewPrivileges|ReadOnly|Restrict)/m)
    const [, bounding] = /^CapabilityBoundingSet=(.*)$/m.exec(unit) ?? []
    const wanted = compose.services[name].cap_add.map((capability) => `CAP_${capability}`).sort()
    t.same(bounding?.split(' ').sort(), name === 'source' ? wanted : undefined)
  }
})
